"""The command line ``ctrecon``. Nothing heavy is imported before a command runs."""

import json
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ctrecon.method_names import DEFAULT_METAL_METHOD, DEFAULT_METHOD, METAL_METHOD_NAMES, METHOD_NAMES
from operators.command_line import (
    AsJson,
    ConfigFile,
    Device,
    FileFormat,
    Format,
    Identifiers,
    Iterations,
    Output,
    Overwrite,
    Preview,
    ResultsFolder,
    SaveMaps,
    SkipExisting,
    Strength,
    TrainingFolder,
    Weights,
    accepting,
    check_outputs,
    command_line,
    for_each,
    format_told_by,
    log,
    out,
    output_paths,
    preview_path,
    print_decisions,
    print_description,
    print_scores,
    progress,
    run,
    whole_numbers,
)

if TYPE_CHECKING:
    from ctrecon.io.options import ReadOptions
    from ctrecon.learned import LearnedMethod
    from ctrecon.reconstruction import Reconstruction
    from ctrecon.sinogram import Sinogram
    from ctrecon.windows import Window

app = command_line("ctrecon", "Sparse-view and metal-corrupted CT sinograms in, Hounsfield units out.")


class Filter(StrEnum):
    """Filters of filtered back-projection."""

    ramp = "ramp"
    shepp_logan = "shepp-logan"
    cosine = "cosine"
    hann = "hann"
    hamming = "hamming"


class Quantity(StrEnum):
    """What the numbers of a file are."""

    counts = "counts"
    line_integrals = "line-integrals"


class AngleUnit(StrEnum):
    """Units of angles."""

    degrees = "degrees"
    radians = "radians"


class NoiseModel(StrEnum):
    """How noise is simulated."""

    counts = "counts"
    sparse_view = "sparse-view"


class Metal(StrEnum):
    """Metal in the built-in phantom."""

    none = "none"
    hip = "hip"
    spine = "spine"
    dental = "dental"


WindowOption = Annotated[
    str | None, typer.Option("--window", help="Of the preview: soft tissue, lung, bone, brain, or low,high in HU.")
]
WideRange = Annotated[bool, typer.Option("--wide-range", help="DICOM in steps of 4 HU up to 15356, for metal.")]
FilterOption = Annotated[Filter, typer.Option("--filter", help="Filter of filtered back-projection.")]


def _read_options(
    variable: Annotated[str | None, typer.Option(help="Name of the array to read, where a file holds several.")] = None,
    geometry: Annotated[Path | None, typer.Option(help="JSON file with the geometry, for files without one.")] = None,
    preset: Annotated[str | None, typer.Option(help="Name of a known geometry, for files without one.")] = None,
    quantity: Annotated[Quantity | None, typer.Option(help="Whether the numbers are counts or line integrals.")] = None,
    incident_counts: Annotated[
        float | None, typer.Option(min=1e-12, help="Counts without an object, for files without a flat field.")
    ] = None,
    angle_unit: Annotated[AngleUnit | None, typer.Option(help="Unit of angles that the file leaves open.")] = None,
    detector_offset_mm: Annotated[
        float | None, typer.Option(help="Coordinate of the detector's centre, in mm: the centre of rotation.")
    ] = None,
    reverse_detector: Annotated[
        bool | None, typer.Option("--reverse-detector/--keep-detector", help="Whether the bins run the other way.")
    ] = None,
    detector_row: Annotated[int | None, typer.Option(min=1, help="Row of a detector with several, from 1.")] = None,
    pixel_mm: Annotated[float | None, typer.Option(min=1e-3, max=100.0, help="Pixel size in mm.")] = None,
    image_shape: Annotated[str | None, typer.Option(help="Image size y,x, such as 512,512.")] = None,
    mu_water: Annotated[float | None, typer.Option(help="Attenuation of water for this scan, in 1/mm.")] = None,
    mask_metal: Annotated[bool, typer.Option("--mask-metal", help="Leave out rays that the file marks as metal.")] = (
        False
    ),
) -> "ReadOptions":
    from ctrecon.io.options import ReadOptions

    shape = whole_numbers(image_shape, "--image-shape", 2) if image_shape else None
    return ReadOptions(
        variable=variable,
        geometry=geometry,
        preset=preset,
        quantity=None if quantity is None else quantity.value,
        incident_counts=incident_counts,
        angle_unit=None if angle_unit is None else angle_unit.value,
        detector_offset_mm=detector_offset_mm,
        reverse_detector=reverse_detector,
        detector_row=detector_row,
        pixel_mm=pixel_mm,
        image_shape=None if shape is None else (shape[0], shape[1]),
        mu_water_per_mm=mu_water,
        mask_metal=mask_metal,
    )


@app.command()
@accepting(_read_options)
def inspect(
    file: Path,
    as_json: AsJson = False,
    *,
    options: "ReadOptions",
) -> None:
    """Print what a sinogram file holds: views, geometry, coverage, noise, decisions and warnings."""
    from ctrecon.inspection import describe
    from ctrecon.io import read, sniff

    description = {"format": sniff(file, options), **describe(read(file, options))}
    if as_json:
        print(json.dumps(description, indent=2))
        return
    print_description(file.name, description)


@app.command()
@accepting(_read_options)
def reconstruct(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...")],
    output: Output,
    method: Annotated[str | None, typer.Option(help=str(METHOD_NAMES), show_default=DEFAULT_METHOD)] = None,
    weights: Weights = None,
    dictionary: Annotated[
        str | None, typer.Option(help="Other filters for sparse coding: a file, or a name such as gabor-32x9.")
    ] = None,
    save_maps: SaveMaps = None,
    regularisation: Strength = None,
    n_iterations: Iterations = None,
    filter_name: FilterOption = Filter.ramp,
    allow_negative: Annotated[
        bool, typer.Option("--allow-negative", help="Let iterative images fall below zero attenuation.")
    ] = False,
    device: Device = "cpu",
    file_format: FileFormat = None,
    preview: Preview = False,
    window: WindowOption = None,
    wide_range: WideRange = False,
    identifiers: Identifiers = False,
    overwrite: Overwrite = False,
    skip_existing: SkipExisting = False,
    *,
    options: "ReadOptions",
) -> None:
    """Reconstruct sinograms to Hounsfield units, as NIfTI, DICOM or npy.

    Several files go to one directory; a file that fails does not stop the others, and the exit status is 2.
    """
    from ctrecon.io import read
    from ctrecon.reconstruction import reconstruct as compute
    from ctrecon.windows import chosen_window
    from operators.errors import InputError
    from operators.io.files import check_writable

    if save_maps is not None and len(files) > 1:
        raise InputError(f"--save-maps takes the maps of one scan, but there are {len(files)}; reconstruct one.")
    chosen = file_format or format_told_by(output, several=len(files) > 1)
    seen = None if window is None else chosen_window(window)
    learned = _learned_method(method, weights, dictionary, keep_codes=save_maps is not None)

    def work(file: Path, target: Path) -> None:
        check_outputs(target, chosen, preview=preview, overwrite=overwrite)
        if save_maps is not None:
            check_writable(save_maps, overwrite=overwrite)
        sinogram = read(file, options)
        with progress(file.name) as report:
            result = compute(
                sinogram,
                learned() if learned else method or DEFAULT_METHOD,
                regularisation=regularisation,
                n_iterations=n_iterations,
                filter=filter_name.value,
                nonnegative=not allow_negative,
                device=device,
                progress=report,
            )
        patient = dict(sinogram.patient) if identifiers else None
        _write(result, target, chosen, patient=patient, wide_range=wide_range, overwrite=overwrite)
        if preview:
            _write_preview(result, preview_path(target), seen or _usual_window(sinogram), overwrite=overwrite)
        if learned is not None and save_maps is not None:
            from ctrecon.learned import write_codes

            write_codes(save_maps, learned, result, overwrite=overwrite)

    for_each(files, output_paths(files, output, chosen), work, skip_existing=skip_existing)


@app.command()
@accepting(_read_options)
def mar(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...")],
    output: Output,
    method: Annotated[str | None, typer.Option(help=str(METAL_METHOD_NAMES), show_default=DEFAULT_METAL_METHOD)] = None,
    weights: Weights = None,
    mask: Annotated[
        Path | None, typer.Option(help="NIfTI image of the metal, 1 = metal; by default it is segmented.")
    ] = None,
    threshold_hu: Annotated[float, typer.Option("--threshold-hu", help="Metal is what is brighter.")] = 2500.0,
    filter_name: FilterOption = Filter.ramp,
    device: Device = "cpu",
    file_format: FileFormat = None,
    preview: Preview = False,
    window: WindowOption = None,
    wide_range: WideRange = False,
    identifiers: Identifiers = False,
    overwrite: Overwrite = False,
    skip_existing: SkipExisting = False,
    *,
    options: "ReadOptions",
) -> None:
    """Reduce metal artefacts: replace the rays through metal or do without them, and put the metal back."""
    from ctrecon.io import read
    from ctrecon.metal import load_metal_method, reconstruct_without_metal
    from ctrecon.windows import chosen_window
    from operators.io.nifti import read_nifti_image

    chosen = file_format or format_told_by(output, several=len(files) > 1)
    seen = None if window is None else chosen_window(window)
    metal_mask = None if mask is None else read_nifti_image(mask)[0]
    name = METAL_METHOD_NAMES.weights_of(method, weights, DEFAULT_METAL_METHOD, with_codes=False)
    learned = None if name is None else load_metal_method(name)

    def work(file: Path, target: Path) -> None:
        check_outputs(target, chosen, preview=preview, overwrite=overwrite)
        sinogram = read(file, options)
        with progress(file.name) as report:
            result = reconstruct_without_metal(
                sinogram,
                learned or method or DEFAULT_METAL_METHOD,
                mask=metal_mask,
                threshold_hu=threshold_hu,
                filter=filter_name.value,
                device=device,
                progress=report,
            )
        patient = dict(sinogram.patient) if identifiers else None
        _write(result, target, chosen, patient=patient, wide_range=wide_range, overwrite=overwrite)
        if preview:
            _write_preview(result, preview_path(target), seen or _usual_window(sinogram), overwrite=overwrite)

    for_each(files, output_paths(files, output, chosen), work, skip_existing=skip_existing)


@app.command()
def simulate(
    image: Annotated[str, typer.Argument(help="An image in HU (NIfTI, DICOM, npz), or 'phantom' for the built-in.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The HDF5 file to write (.h5).")],
    preset: Annotated[str, typer.Option(help="Name of the scanner geometry.")] = "sparse-view",
    n_views: Annotated[int | None, typer.Option("--views", min=1, help="Number of views; by default all.")] = None,
    matrix: Annotated[int | None, typer.Option(min=16, max=2048, help="Size of the square image.")] = None,
    n_photons: Annotated[
        float | None, typer.Option("--photons", min=1.0, help="Photons per ray without an object; default: no noise.")
    ] = None,
    electronic_noise: Annotated[float, typer.Option(min=0.0, help="Electronic noise, in photons.")] = 0.0,
    noise: Annotated[NoiseModel, typer.Option(help="Photon counts, or the noise of the sparse-view protocol.")] = (
        NoiseModel.counts
    ),
    polyenergetic: Annotated[bool, typer.Option("--polyenergetic", help="A 120 kVp spectrum.")] = False,
    section: Annotated[str, typer.Option(help="Section of the built-in phantom.")] = "abdomen",
    metal: Annotated[Metal, typer.Option(help="Metal in the built-in phantom.")] = Metal.none,
    material: Annotated[str, typer.Option(help="Material of the metal.")] = "titanium",
    seed: Annotated[int, typer.Option(help="Seed of phantom and noise.")] = 0,
    overwrite: Overwrite = False,
) -> None:
    """Simulate a scan of an image and write its sinogram."""
    from ctrecon.io.sinogram_file import write_sinogram
    from ctrecon.simulation import Scenario, simulate_scenario
    from operators.io.files import check_writable

    check_writable(output, overwrite=overwrite)
    scenario = Scenario(
        image=image,
        preset=preset,
        n_views=n_views,
        matrix=matrix,
        n_photons=n_photons,
        electronic_noise_std=electronic_noise,
        noise=noise.value,
        polyenergetic=polyenergetic,
        section=section,
        metal=None if metal is Metal.none else metal.value,
        material=material,
        seed=seed,
    )
    sinogram = simulate_scenario(scenario).sinogram
    write_sinogram(output, sinogram, overwrite=overwrite)
    print_decisions(sinogram.decisions)
    log.print(f"Wrote {output}: sinogram {tuple(sinogram.data.shape)} (slice, view, detector).", markup=False)
    log.print(f"Next: ctrecon reconstruct {output} -o image.nii.gz --preview", markup=False)


@app.command()
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory for the results.")] = Path("ctrecon-demo"),
    seed: Annotated[int, typer.Option(help="Seed of phantom and noise.")] = 0,
    overwrite: Overwrite = False,
) -> None:
    """Simulate a sparse-view and a metal scan, reconstruct them, and show how well it went; under a minute."""
    from ctrecon.demo import run_demo
    from operators.io.files import check_writable

    check_writable(output, overwrite=overwrite)
    with progress("demo") as report:
        sparse, metal = run_demo(output, seed=seed, overwrite=overwrite, progress=report)
    print_scores(sparse, "Sparse views, HU against the phantom inside the body")
    print_scores(metal, "Metal, HU against the phantom inside the body, metal excluded")
    out.print(f"Look at {output / 'sparse.png'} and {output / 'metal.png'}; the images are {output / 'tv.nii.gz'} etc.")
    out.print("Next, with your own sinogram:")
    out.print("  ctrecon inspect YOUR_FILE")
    out.print("  ctrecon reconstruct YOUR_FILE -o image.nii.gz --preview")


@app.command()
def train(
    config: ConfigFile,
    output: TrainingFolder,
    device: Device = "cpu",
) -> None:
    """Train a reconstruction from images; a training that was stopped goes on where it was."""
    from ctrecon.config import TrainingConfig, read_config
    from ctrecon.metal_evaluation import has_metal

    if has_metal(config):
        from ctrecon.metal_training import MetalTrainingConfig, train_metal

        of_metal = read_config(config, MetalTrainingConfig)
        with progress(of_metal.name) as report:
            path = train_metal(of_metal, output, device=device, progress=report)
    else:
        from ctrecon.training import train as run_training

        settings = read_config(config, TrainingConfig)
        with progress(settings.name) as report:
            path = run_training(settings, output, device=device, progress=report)
    log.print(f"Wrote {path}; the log and a picture of the loss are beside it.", soft_wrap=True)


@app.command()
def evaluate(
    config: ConfigFile,
    output: ResultsFolder,
    device: Device = "cpu",
) -> None:
    """Compare methods on simulated scans: metrics for each slice, a summary and pictures."""
    from ctrecon.config import EvaluationConfig, read_config
    from ctrecon.evaluation import evaluate as run_evaluation
    from ctrecon.metal_evaluation import MetalEvaluationConfig, evaluate_metal, has_metal

    command = f"ctrecon evaluate {config} -o {output} --device {device}"
    with progress("evaluate") as report:
        if has_metal(config):
            of_metal = read_config(config, MetalEvaluationConfig)
            evaluate_metal(of_metal, output, device=device, command=command, progress=report)
        else:
            settings = read_config(config, EvaluationConfig)
            run_evaluation(settings, output, device=device, command=command, progress=report)
    log.print(f"Wrote {output / 'summary.md'}, metrics.csv and pictures.", soft_wrap=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; the entry point of ``ctrecon``.

    Parameters
    ----------
    arguments
        Words after the program's name; by default those of the process.
    """
    run(app, arguments)


def _learned_method(
    method: str | None, weights: str | None, dictionary: str | None, *, keep_codes: bool
) -> "LearnedMethod | None":
    """Trained weights with the options that belong to them; ``None`` for a classical method, which has none."""
    with_codes = keep_codes or dictionary is not None
    name = METHOD_NAMES.weights_of(method, weights, DEFAULT_METHOD, with_codes=with_codes)
    if name is None:
        return None
    from ctrecon.learned import load_method

    return load_method(name, dictionary=dictionary, keep_codes=keep_codes)


def _write(
    result: "Reconstruction",
    target: Path,
    chosen: Format,
    *,
    patient: dict[str, str] | None,
    wide_range: bool,
    overwrite: bool,
) -> None:
    print_decisions(result.decisions)
    hu = result.hu
    if chosen is Format.nifti:
        from operators.io.nifti import write_nifti

        description = f"ctrecon {result.method} HU"
        write_nifti(
            target, hu, result.grid, part="real", geometry_known=True, description=description, overwrite=overwrite
        )
    elif chosen is Format.dicom:
        from ctrecon.io.dicom import write_dicom

        _, n_clipped = write_dicom(
            target,
            hu,
            result.grid,
            method=result.method,
            description=f"Reconstructed from a sinogram by ctrecon, method {result.method}",
            mu_water_per_mm=result.mu_water_per_mm,
            patient=patient,
            wide_range=wide_range,
            overwrite=overwrite,
        )
        if n_clipped:
            advice = "" if wide_range else "; --wide-range keeps values up to 15356"
            log.print(f"  {n_clipped} voxels lie outside the range of the DICOM values and were clipped{advice}.")
    else:
        from operators.io.numpy_files import write_npy

        write_npy(target, hu.numpy(), overwrite=overwrite)
    spacing = " × ".join(f"{size:.3g}" for size in result.grid.spacing_mm[::-1])
    log.print(
        f"Wrote {target}: {' × '.join(map(str, hu.shape))} voxels of {spacing} mm in HU, method {result.method}, "
        f"whitened data residual {float(result.residual.mean()):.2f} (1 = image and noise explain the data).",
        markup=False,
        soft_wrap=True,
    )


def _usual_window(sinogram: "Sinogram") -> "Window | None":
    """Soft tissue where Hounsfield units mean something, else all grey values."""
    from ctrecon.windows import chosen_window

    return chosen_window("soft tissue") if sinogram.mu_water_known else None


def _write_preview(result: "Reconstruction", path: Path, window: "Window | None", *, overwrite: bool) -> None:
    from operators.io.picture import write_preview

    write_preview(
        path,
        result.hu,
        grid=result.grid,
        window=None if window is None else window.limits_hu,
        caption="" if window is None else window.caption,
        overwrite=overwrite,
    )
