"""The built wheel, installed in a clean environment, imports from anywhere."""

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]

IMPORT_ALL = """
import importlib, pkgutil
for name in ("compress", "models", "launch"):
    package = importlib.import_module(name)
    assert "site-packages" in package.__file__, package.__file__
    for module in pkgutil.walk_packages(package.__path__, name + "."):
        if module.name != "launch.__main__":
            importlib.import_module(module.name)
            print(module.name)
"""


def test_the_wheel_holds_every_module_and_imports_from_the_root_folder(tmp_path):
    build = [sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path / "dist"), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True, timeout=300)
    (wheel,) = (tmp_path / "dist").glob("gradrank-*.whl")

    tracked = {
        str(path.relative_to(ROOT)) for name in ("compress", "models", "launch") for path in (ROOT / name).rglob("*.py")
    }
    shipped = {name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".py")}
    assert shipped == tracked

    # The environment has only the wheel of its own; dependencies are those that run these tests.
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    site = next((environment / "lib").glob("python*/site-packages"))
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel)]
    subprocess.run(install, check=True, timeout=300)
    dependencies = [path for path in sys.path if path.endswith("site-packages")]
    (site / "dependencies.pth").write_text("\n".join(dependencies))
    python = environment / "bin" / "python"
    done = subprocess.run(
        [str(python), "-P", "-c", IMPORT_ALL], cwd="/", capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) > 30
    entry = (site / next(path.name for path in site.glob("gradrank-*.dist-info")) / "entry_points.txt").read_text()
    assert "gradrank = launch.cli:main" in entry
