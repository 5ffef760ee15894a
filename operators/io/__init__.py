"""Files that know no modality: safe outputs, containers opened with care, NIfTI images and pictures."""
