"""The command line ``mrirecon``. Nothing heavy is imported before a command runs."""

import json
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mrirecon.method_names import DEFAULT_METHOD, METHOD_NAMES
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
    lengths_mm,
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
    from mrirecon.io.options import ReadOptions
    from mrirecon.learned import LearnedMethod
    from mrirecon.reconstruction import Reconstruction

app = command_line("mrirecon", "Raw low-field MRI k-space in, NIfTI and DICOM out.")


class Part(StrEnum):
    """What of a complex image is written to NIfTI."""

    magnitude = "magnitude"
    phase = "phase"
    complex = "complex"


class CoilMaps(StrEnum):
    """How coil sensitivity maps are estimated."""

    espirit = "espirit"
    walsh = "walsh"
    none = "none"


class FourierSign(StrEnum):
    """Which transform of the samples is the image."""

    inverse = "inverse"
    forward = "forward"


class TrajectoryUnit(StrEnum):
    """Units in which files hold the trajectory of a scan."""

    cycles_per_pixel = "cycles-per-pixel"
    radians_per_pixel = "radians-per-pixel"
    grid_index = "index"
    per_metre = "1/m"


class Contrast(StrEnum):
    """Contrasts of the built-in phantom."""

    t1 = "t1"
    t2 = "t2"
    flair = "flair"


class TrajectoryKind(StrEnum):
    """How a simulated scan samples k-space."""

    cartesian = "cartesian"
    radial = "radial"
    golden_radial = "golden-radial"
    spiral = "spiral"
    rosette = "rosette"
    epi = "epi"
    stack_of_stars = "stack-of-stars"


class PartialFourier(StrEnum):
    """What is done about k-space that was measured on one side only."""

    auto = "auto"
    pocs = "pocs"
    homodyne = "homodyne"
    none = "none"


def _read_options(
    variable: Annotated[
        str | None, typer.Option(help="Name of the array or group to read, where a file holds several.")
    ] = None,
    axes: Annotated[
        str | None, typer.Option(help="Meaning of an array's axes in file order: kx,ky,slice or coil,shot,sample.")
    ] = None,
    fourier_sign: Annotated[
        FourierSign | None, typer.Option(help="Whether the image is the inverse or the forward transform.")
    ] = None,
    voxel_mm: Annotated[str | None, typer.Option(help="Voxel size dx,dy,dz in mm, for files without one.")] = None,
    keep_oversampling: Annotated[bool, typer.Option("--keep-oversampling", help="Do not crop the readout.")] = False,
    split_averages: Annotated[
        bool, typer.Option("--split-averages", help="Keep averages apart as repetitions.")
    ] = False,
    trajectory_file: Annotated[
        Path | None, typer.Option(help="File with the trajectory of an array that has none beside it.")
    ] = None,
    trajectory_unit: Annotated[
        TrajectoryUnit | None, typer.Option(help="Unit of the trajectory, otherwise told by its largest coordinate.")
    ] = None,
    trajectory_axes: Annotated[
        str | None, typer.Option(help="Components of the trajectory in file order, otherwise kx,ky[,kz].")
    ] = None,
    matrix: Annotated[
        str | None, typer.Option(help="Pixels y,x or z,y,x of the image of a scan with a trajectory.")
    ] = None,
) -> "ReadOptions":
    from mrirecon.io.options import ReadOptions

    return ReadOptions(
        variable=variable,
        axes=_names(axes) if axes else None,
        fourier_sign=None if fourier_sign is None else fourier_sign.value,
        voxel_mm=_voxel(voxel_mm) if voxel_mm else None,
        remove_oversampling=not keep_oversampling,
        average=not split_averages,
        trajectory=trajectory_file,
        trajectory_unit=None if trajectory_unit is None else trajectory_unit.value,
        trajectory_axes=_names(trajectory_axes) if trajectory_axes else None,
        matrix=whole_numbers(matrix, "--matrix") if matrix else None,
    )


@app.command()
@accepting(_read_options)
def inspect(
    file: Path,
    as_json: AsJson = False,
    *,
    options: "ReadOptions",
) -> None:
    """Print what a raw file holds: encoding, lines, coils, noise, geometry, decisions and warnings."""
    from mrirecon.inspection import describe
    from mrirecon.io import read, sniff

    description = {"format": sniff(file), **describe(read(file, options))}
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
        str | None,
        typer.Option(help="Other filters for sparse coding: a file, or a name such as learned-64x11 or dct-32x9."),
    ] = None,
    save_maps: SaveMaps = None,
    regularisation: Strength = None,
    n_iterations: Iterations = None,
    coil_maps: Annotated[CoilMaps, typer.Option(help="How coil sensitivities are estimated.")] = CoilMaps.espirit,
    n_virtual_coils: Annotated[
        int | None, typer.Option("--virtual-coils", min=1, help="Compress the coils to so many.")
    ] = None,
    remove_interference: Annotated[
        bool, typer.Option("--remove-interference", help="Take narrow-band interference out of k-space first.")
    ] = False,
    reference_coils: Annotated[
        str | None,
        typer.Option(help="Coils that receive interference only, such as 4,5; what they predict is taken out."),
    ] = None,
    partial_fourier: Annotated[PartialFourier, typer.Option(help="Filling of a missing side of k-space.")] = (
        PartialFourier.auto
    ),
    device: Device = "cpu",
    file_format: FileFormat = None,
    part: Annotated[Part, typer.Option(help="What of the complex image NIfTI gets.")] = Part.magnitude,
    preview: Preview = False,
    identifiers: Identifiers = False,
    overwrite: Overwrite = False,
    skip_existing: SkipExisting = False,
    *,
    options: "ReadOptions",
) -> None:
    """Reconstruct raw files to NIfTI, DICOM or npy.

    Several files go to one directory; a file that fails does not stop the others, and the exit status is 2.
    """
    from mrirecon.interference import (
        remove_interference_with_references,
        remove_narrow_band_interference,
        split_reference_coils,
    )
    from mrirecon.io import read
    from mrirecon.reconstruction import reconstruct as compute
    from operators.errors import InputError
    from operators.io.files import check_writable

    if save_maps is not None and len(files) > 1:
        raise InputError(f"--save-maps takes the maps of one scan, but there are {len(files)}; reconstruct one.")
    references = whole_numbers(reference_coils, "--reference-coils") if reference_coils else None
    chosen = file_format or format_told_by(output, several=len(files) > 1)
    learned = _learned_method(method, weights, dictionary, keep_codes=save_maps is not None)

    def work(file: Path, target: Path) -> None:
        check_outputs(target, chosen, preview=preview, overwrite=overwrite)
        if save_maps is not None:
            check_writable(save_maps, overwrite=overwrite)
        kspace = read(file, options)
        if references:
            kspace = remove_interference_with_references(*split_reference_coils(kspace, references))
        if remove_interference:
            kspace = remove_narrow_band_interference(kspace)
        with progress(file.name) as report:
            result = compute(
                kspace,
                learned() if learned else method or DEFAULT_METHOD,
                regularisation=regularisation,
                n_iterations=n_iterations,
                coil_maps=coil_maps.value,
                n_virtual_coils=n_virtual_coils,
                partial_fourier=partial_fourier.value,
                device=device,
                progress=report,
            )
        print_decisions(result.decisions)
        _write(result, target, chosen, part=part, identifiers=identifiers, overwrite=overwrite)
        if preview:
            _write_preview(result, preview_path(target), overwrite=overwrite)
        if learned is not None and save_maps is not None:
            from mrirecon.learned import write_codes

            write_codes(save_maps, learned, result, overwrite=overwrite)
        _print_result(result, target)

    for_each(files, output_paths(files, output, chosen), work, skip_existing=skip_existing)


@app.command()
def simulate(
    image: Annotated[str, typer.Argument(help="A NIfTI image, or the word 'phantom' for the built-in one.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The ISMRMRD file to write (.h5).")],
    matrix: Annotated[int, typer.Option(min=16, max=1024, help="Size of the square k-space grid.")] = 128,
    n_slices: Annotated[int, typer.Option("--slices", min=1, max=256, help="Slices of the built-in phantom.")] = 4,
    trajectory: Annotated[TrajectoryKind, typer.Option(help="How k-space is sampled.")] = TrajectoryKind.cartesian,
    box: Annotated[str | None, typer.Option(help="Keep a central box ky,kx of k-space, such as 96,96.")] = None,
    acceleration: Annotated[
        float, typer.Option(min=1.0, help="Measure this many times fewer lines (at random), spokes or interleaves.")
    ] = 1.0,
    centre_lines: Annotated[int, typer.Option(min=1, help="Central lines always kept when accelerating.")] = 16,
    noise: Annotated[float, typer.Option(min=0.0, help="Noise variance relative to the signal's.")] = 0.2,
    coils: Annotated[int, typer.Option(min=1, max=64, help="Number of receive coils.")] = 1,
    contrast: Annotated[Contrast, typer.Option(help="Contrast of the built-in phantom.")] = Contrast.t2,
    seed: Annotated[int, typer.Option(help="Seed of phase, noise and line selection.")] = 0,
    overwrite: Overwrite = False,
) -> None:
    """Simulate a noisy, undersampled scan and write it as ISMRMRD raw data."""
    from mrirecon.io.ismrmrd import write_ismrmrd
    from mrirecon.simulation import Scenario, simulate_scenario
    from operators.io.files import check_writable

    check_writable(output, overwrite=overwrite)
    scenario = Scenario(
        image=image,
        matrix=matrix,
        n_slices=n_slices,
        trajectory=trajectory.value,
        box=whole_numbers(box, "--box", 2) if box else None,
        acceleration=acceleration,
        n_centre_lines=centre_lines,
        relative_noise_variance=noise,
        n_coils=coils,
        contrast=contrast.value,
        seed=seed,
    )
    simulation = simulate_scenario(scenario)
    write_ismrmrd(output, simulation.kspace, overwrite=overwrite)
    rate = 100 * simulation.kspace.fill_rate
    log.print(f"Wrote {output}: k-space {tuple(simulation.kspace.data.shape)}, {rate:.0f} % measured.")
    log.print(f"Next: mrirecon reconstruct {output} -o image.nii.gz --preview")


@app.command()
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory for the results.")] = Path("mrirecon-demo"),
    trajectory: Annotated[TrajectoryKind, typer.Option(help="How k-space is sampled.")] = TrajectoryKind.cartesian,
    seed: Annotated[int, typer.Option(help="Seed of phase, noise and line selection.")] = 0,
    overwrite: Overwrite = False,
) -> None:
    """Simulate a low-field scan, reconstruct it with every method, and show how well it went; under a minute."""
    from mrirecon.demo import run_demo
    from operators.io.files import check_writable

    check_writable(output, overwrite=overwrite)
    with progress("demo") as report:
        rows = run_demo(output, trajectory=trajectory.value, seed=seed, overwrite=overwrite, progress=report)
    print_scores(rows, "Magnitude against the noise-free phantom, mean over slices")
    out.print(
        f"Look at {output / 'comparison.png'}; the images are {output / DEFAULT_METHOD}.nii.gz and its neighbours."
    )
    out.print("Next, with your own raw file:")
    out.print("  mrirecon inspect YOUR_FILE")
    out.print("  mrirecon reconstruct YOUR_FILE -o image.nii.gz --preview")


@app.command()
def train(
    config: ConfigFile,
    output: TrainingFolder,
    device: Device = "cpu",
) -> None:
    """Train a reconstruction from images; a training that was stopped goes on where it was."""
    from mrirecon.config import TrainingConfig, read_config
    from mrirecon.training import train as run_training

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
    from mrirecon.config import EvaluationConfig, read_config
    from mrirecon.evaluation import evaluate as run_evaluation

    settings = read_config(config, EvaluationConfig)
    command = f"mrirecon evaluate {config} -o {output} --device {device}"
    with progress("evaluate") as report:
        run_evaluation(settings, output, device=device, command=command, progress=report)
    log.print(f"Wrote {output / 'summary.md'}, metrics.csv and pictures.", soft_wrap=True)


@app.command()
def learn_dictionary(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="NIfTI or .npz, or one .toml of data.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The file of filters to write (.npz).")],
    n_filters: Annotated[int, typer.Option("--filters", min=1, max=1024, help="Number of filters.")] = 32,
    filter_size: Annotated[int, typer.Option("--size", min=3, max=63, help="Their odd size in pixels.")] = 9,
    sparsity: Annotated[float, typer.Option(help="Cost of a code, relative to the detail of an image.")] = 1.0,
    smoothness: Annotated[float, typer.Option(help="How little is detail: the larger, the more counts.")] = 4.0,
    n_steps: Annotated[int, typer.Option("--steps", min=1, help="Number of steps.")] = 120,
    matrix: Annotated[
        int | None, typer.Option(min=16, max=1024, help="Pixels along each side that slices are brought to; 128.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the choice of crops.")] = 0,
    preview: Annotated[bool, typer.Option("--preview", help="Also write a picture of the filters.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Learn the filters of convolutional sparse coding from images, for reconstruct --dictionary."""
    from mrirecon.dictionaries import learn_from_files
    from operators.dictionaries import write_dictionary, write_mosaic
    from operators.errors import InputError
    from operators.io.files import check_writable

    if output.suffix != ".npz":
        raise InputError(f"{output} does not end in .npz; a dictionary is written in this format only.")
    picture = output.with_suffix(".png")
    for path in (output, picture) if preview else (output,):
        check_writable(path, overwrite=overwrite)
    with progress("learn-dictionary") as report:
        learned = learn_from_files(
            images,
            n_filters=n_filters,
            filter_size=filter_size,
            sparsity=sparsity,
            smoothness=smoothness,
            n_steps=n_steps,
            matrix=matrix,
            seed=seed,
            progress=report,
        )
    write_dictionary(output, learned, overwrite=overwrite)
    if preview:
        write_mosaic(picture, learned.filters, overwrite=overwrite)
    share = 100 * float(learned.provenance["density"])
    log.print(
        f"Wrote {output}: {n_filters} filters of {filter_size} × {filter_size}, {share:.1f} % of the codes used.",
        soft_wrap=True,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; the entry point of ``mrirecon``.

    Parameters
    ----------
    arguments
        Words after the program's name; by default those of the process.
    """
    run(app, arguments)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(","))


def _voxel(text: str) -> tuple[float, float, float]:
    dx, dy, dz = lengths_mm(text, "--voxel-mm", "dx,dy,dz")
    return dx, dy, dz


def _learned_method(
    method: str | None, weights: str | None, dictionary: str | None, *, keep_codes: bool
) -> "LearnedMethod | None":
    """Trained weights with the options that belong to them; ``None`` for a classical method, which has none."""
    with_codes = keep_codes or dictionary is not None
    name = METHOD_NAMES.weights_of(method, weights, DEFAULT_METHOD, with_codes=with_codes)
    if name is None:
        return None
    from mrirecon.learned import load_method

    return load_method(name, dictionary=dictionary, keep_codes=keep_codes)


def _write(
    result: "Reconstruction", target: Path, chosen: Format, *, part: Part, identifiers: bool, overwrite: bool
) -> None:
    acquisition = result.acquisition
    if chosen is Format.nifti:
        from operators.io.nifti import write_nifti

        write_nifti(
            target,
            result.image,
            result.grid,
            part=part.value,
            geometry_known=acquisition.geometry_known,
            repetition_time_ms=acquisition.repetition_time_ms,
            description=f"mrirecon {result.method}",
            overwrite=overwrite,
        )
    elif chosen is Format.dicom:
        from mrirecon.io.dicom import write_dicom

        write_dicom(
            target,
            result.image,
            result.grid,
            geometry_known=acquisition.geometry_known,
            acquisition=acquisition,
            method=result.method,
            description=f"Reconstructed from raw k-space by mrirecon, method {result.method}",
            patient=acquisition.patient if identifiers else None,
            overwrite=overwrite,
        )
    else:
        from operators.io.numpy_files import write_npy

        write_npy(target, result.image.numpy(), overwrite=overwrite)


def _write_preview(result: "Reconstruction", path: Path, *, overwrite: bool) -> None:
    from operators.io.picture import write_preview

    write_preview(path, result.image, grid=result.grid, overwrite=overwrite)


def _print_result(result: "Reconstruction", target: Path) -> None:
    spacing = " × ".join(f"{size:.3g}" for size in result.grid.spacing_mm[::-1])
    residual = float(result.residual.mean())
    log.print(
        f"Wrote {target}: {' × '.join(map(str, result.image.shape))} voxels of {spacing} mm, method {result.method}, "
        f"whitened data residual {residual:.2f} (1 = image and noise explain the data).",
        soft_wrap=True,
    )
