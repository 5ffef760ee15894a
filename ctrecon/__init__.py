"""From sparse-view CT sinograms to images. Nothing is here yet: the MRI half of the toolkit comes first."""
