"""The part of the build that pyproject.toml cannot express: recipes are in the wheel, as `lightning_snn/recipes`."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithRecipes(build_py):
    """Copy the scripts and configurations of `recipes/` into a built package; a checkout uses them where they are."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for path in sorted(Path("recipes").rglob("*")):
                if path.suffix in (".py", ".yaml"):
                    target = Path(self.build_lib, "lightning_snn", path)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(path, target)


setup(cmdclass={"build_py": BuildWithRecipes})
