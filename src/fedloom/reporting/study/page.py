from pathlib import Path
def write_study(result, path: Path) -> Path:
    return path
