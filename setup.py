"""Which folder becomes which package. All else is in pyproject.toml, which can find packages but not rename them."""

from setuptools import find_packages, setup

# Everyone has a folder experiments/ of their own: an installed package of that name would hide it or be hidden by it.
NAMES = {
    "lwpd_lightning": "lwpd_lightning",
    "experiments": "lwpd_experiments",
    "conf": "lwpd_experiments.conf",  # so that an installed command finds its configuration
}


def _installed(package: str) -> str:
    folder, dot, rest = package.partition(".")
    return NAMES[folder] + dot + rest


found = find_packages(include=[pattern for folder in NAMES for pattern in (folder, f"{folder}.*")])
setup(
    packages=[_installed(package) for package in found],
    package_dir={name: folder for folder, name in NAMES.items()},
)
