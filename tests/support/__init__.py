"""Set-up that several test files share: trainers, small tasks, recipes, a second process, readers of written files."""
