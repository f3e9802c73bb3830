"""Publish a trained model directory: python -m hub_card MODEL_DIR --report REPORT.json --repo_id ORG/NAME [--push]

Without --push, the upload is assembled beside the model, to be looked at.
"""

import argparse
import sys
from pathlib import Path

from .publish import assemble, publish, write_upload
from .report import PublishError


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m hub_card", description=__doc__.split("\n")[0])
    parser.add_argument("model_dir", type=Path, help="directory that save_pretrained or train/run.py wrote")
    parser.add_argument("--report", type=Path, help="report on these weights; default: MODEL_DIR/report.json")
    parser.add_argument("--repo_id", required=True, help="ORG/NAME on the Hub")
    parser.add_argument("--push", action="store_true", help="send it; else only assemble it beside the model")
    parser.add_argument("--private", action="store_true", help="make the repository private")
    options = parser.parse_args(argv)
    report = options.report or options.model_dir / "report.json"
    if options.push:
        print(f"Published: {publish(options.model_dir, report, options.repo_id, options.private)}")
        return
    folder = options.model_dir.resolve()
    folder = folder.with_name(f"{folder.name}-upload")
    upload = assemble(options.model_dir, report, options.repo_id)
    write_upload(upload, folder)
    print(f"{len(upload)} files in {folder}; read its README.md, then run the same with --push.")


if __name__ == "__main__":
    try:
        main()
    except PublishError as error:
        sys.exit(f"error: {error}")
