"""What a dataset is, in plain values: for people, and for programs that ask."""

from pathlib import Path
from typing import Any

from hpcvol.data.manifest import fields_to_json, read_manifest
from hpcvol.data.verify import dataset_nbytes, unlisted_files


def describe_dataset(folder: Path) -> dict[str, Any]:
    """Return what the manifest of the dataset in `folder` says, as values for JSON; sizes in bytes. Local.

    Raises:
        DataError: there is no dataset, or its manifest is damaged.
    """
    manifest = read_manifest(folder)
    return {
        "kind": "dataset",
        "path": str(folder),
        "id": manifest.id,
        "rows": sum(manifest.rows(split) for split in manifest.splits),
        "nbytes": dataset_nbytes(manifest),
        "splits": {
            split: {
                "rows": manifest.rows(split),
                "shards": len(shards),
                "nbytes": sum(shard.nbytes for shard in shards),
            }
            for split, shards in manifest.splits.items()
        },
        "fields": fields_to_json(manifest.fields),
        "built": dict(manifest.recipe),
        "unlisted": [path.name for path in unlisted_files(folder, manifest)],
    }
