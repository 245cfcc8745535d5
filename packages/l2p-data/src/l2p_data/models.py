"""Model directories: given as a path, or as an id in the local Hugging Face cache. Nothing is downloaded."""

from pathlib import Path

from l2p_data.errors import DataError


def local_directory(model: str | Path, marker: str, what: str) -> Path:
    """Return the directory of a model.

    Args:
        model: a path, or an id such as "owner/name".
        marker: the file by which such a directory is known, "model_index.json".
        what: for the error, "a diffusers text-to-image pipeline".

    Raises:
        DataError: there is none.
    """
    path = Path(model)
    if not path.exists() and str(model).count("/") == 1 and not str(model).startswith((".", "/", "~")):
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

        try:
            path = Path(snapshot_download(str(model), local_files_only=True))
        except (LocalEntryNotFoundError, HFValidationError) as error:
            raise DataError(
                f"model {model} is neither a directory nor in the local Hugging Face cache; download it first"
            ) from error
    if not path.is_dir():
        raise DataError(f"model directory {model} does not exist")
    if not (path / marker).is_file():
        raise DataError(f"{model} has no {marker}; wanted the directory of {what}")
    return path.absolute()
