"""Flags that several scripts have, listed once for them and for whoever calls what they call from Python."""
import dataclasses

from errors import require
from fast.precision import PRECISIONS

COMPRESSIONS = ('none', 'float16', 'bfloat16')


class Checked:
    """What dataclasses of flags check their fields with."""

    def check(self, name: str, valid: bool, expected: str):
        """Raises InputError, which names the flag, what is expected and what came, unless valid."""
        require(valid, f'--{name} must be {expected}, not {getattr(self, name)!r}')


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainFlags(Checked):
    """Fine-tunes a model on text.

    Where the run has a checkpoint, training continues from it exactly as if it had never stopped. 0 turns a periodic
    action off.

    Args:
        dataset: a text file, an .npz of encode.py, a directory or a glob of either, or several of these with commas
            between.
        model_name: the model to start from, a directory of models_dir.
        models_dir: where models are.
        combine: small files are joined to chunks of at least this many characters.
        encoding: of the text files.
        special_tokens: in text files, <|endoftext|> separates documents, and other special tokens of the
            model are themselves; false: they are text like any other.
        batch_size: windows of n_ctx tokens in a batch.
        learning_rate: of the optimizer.
        accumulate_gradients: batches that are averaged for one update.
        memory_saving_gradients: keep one activation a layer, compute the others again: less memory, a sixth slower.
        only_train_transformer_layers: leave the embeddings and the last normalization as they are.
        optimizer: adam, adamw, adafactor (next to no memory of its own) or sgd.
        precision: float32, or bfloat16 for matrix products and activations: faster, less memory. The weights, sums and
            the checkpoints are float32 in either case. tf32: float32 with products in the TF32 of NVIDIA's GPUs from
            Ampere on, 10 bits of mantissa; elsewhere the same as float32.
        xla: compile the whole update as one kernel; for GPUs.
        warmup_steps: updates over which the learning rate rises to its full value.
        schedule: of the learning rate after that: constant, or cosine or linear down to 0 at --steps.
        weight_decay: the share of a matrix's weights, times the learning rate, taken off at each update; None for 0.01
            with adamw and 0 with the others.
        clip_norm: gradients with a greater norm are scaled down to this one; 0 for never.
        noise: the share of input tokens replaced by random ones, against overfitting.
        top_k: samples are drawn from this many of the likeliest tokens; 0 for all.
        top_p: samples are drawn from the likeliest tokens that together have this probability; 0 for all.
        restore_from: latest (the run's last checkpoint, else the model), fresh (the model), or a checkpoint: a
            directory, or a path like checkpoint/run1/model-1000.
        run_name: names the folders of the run below checkpoint_dir and samples_dir.
        checkpoint_dir: where runs are saved.
        samples_dir: where samples are written.
        sample_every: updates between samples.
        sample_length: tokens in a sample; None for n_ctx - 1.
        sample_num: samples at a time.
        save_every: updates between checkpoints. One is also written at the end, on Ctrl-C, SIGTERM, and on errors.
        steps: updates in all, those of earlier sessions of the run included; None for no end.
        seed: of the order of the data, the noise and the samples; None for a new one, kept on resume.
        val_dataset: as dataset; without it, val_every holds out the last 5% of the dataset's tokens.
        val_batch_size: windows in a validation batch.
        val_batch_count: validation batches; always the same windows.
        val_every: updates between validations. The weights with the lowest validation loss are kept as model-best.
        patience: stop after so many validations without a lower loss; 0 for never.
    """
    dataset: str
    model_name: str = '124M'
    models_dir: str = 'models'
    combine: int = 50000
    encoding: str = 'utf-8'
    special_tokens: bool = True
    batch_size: int = 1
    learning_rate: float = 2e-5
    accumulate_gradients: int = 1
    memory_saving_gradients: bool = False
    only_train_transformer_layers: bool = False
    optimizer: str = 'adam'
    precision: str = 'float32'
    xla: bool = False
    warmup_steps: int = 0
    schedule: str = 'constant'
    weight_decay: float | None = None
    clip_norm: float = 0.0
    noise: float = 0.0
    top_k: int = 40
    top_p: float = 0.0
    restore_from: str = 'latest'
    run_name: str = 'run1'
    checkpoint_dir: str = 'checkpoint'
    samples_dir: str = 'samples'
    sample_every: int = 100
    sample_length: int | None = None
    sample_num: int = 1
    save_every: int = 1000
    steps: int | None = None
    seed: int | None = None
    val_dataset: str | None = None
    val_batch_size: int = 2
    val_batch_count: int = 40
    val_every: int = 0
    patience: int = 0

    def __post_init__(self):
        for name in ('batch_size', 'accumulate_gradients', 'val_batch_size', 'val_batch_count', 'combine'):
            self.check(name, getattr(self, name) >= 1, '1 or more')
        for name in ('sample_every', 'sample_num', 'save_every', 'val_every', 'top_k', 'steps', 'seed', 'warmup_steps',
                     'weight_decay', 'clip_norm', 'patience'):
            self.check(name, (getattr(self, name) or 0) >= 0, '0 or more')
        self.check('sample_length', self.sample_length is None or self.sample_length >= 1, '1 or more')
        self.check('learning_rate', self.learning_rate > 0, 'above 0')
        self.check('noise', 0 <= self.noise < 1, 'from 0 to below 1')
        self.check('top_p', 0 <= self.top_p <= 1, 'from 0 to 1')
        for name, choices in (('optimizer', ('adam', 'adamw', 'adafactor', 'sgd')), ('precision', PRECISIONS),
                              ('schedule', ('constant', 'cosine', 'linear'))):
            self.check(name, getattr(self, name) in choices, f'one of {", ".join(choices)}')
        require(self.schedule == 'constant' or self.steps, f'--schedule {self.schedule} needs --steps, where it ends')
        require(self.val_every or not self.patience, '--patience counts validations: give --val_every too')


@dataclasses.dataclass(frozen=True, kw_only=True)
class HorovodFlags(TrainFlags):
    """Fine-tunes a model on text in several processes: N of them with batches of B are one with batches of N·B.

    Every other flag is train.py's, and a run can go on with either script and with any number of processes.

    Args:
        compression: what gradients are sent as: none (float32), float16 or bfloat16, half the bytes.
        timeout: seconds after which all processes have ended where one does not answer: it hangs, or a cable is pulled.
            What one process does while the others wait may last longer. 0 for never.
    """
    compression: str = 'none'
    timeout: int = 120

    def __post_init__(self):
        super().__post_init__()
        self.check('timeout', self.timeout >= 0, '0 or more')
        self.check('compression', self.compression in COMPRESSIONS, f'one of {", ".join(COMPRESSIONS)}')


@dataclasses.dataclass(frozen=True)
class SamplingFlags(Checked):
    """Draws samples of a model.

    Args:
        model_name: a directory of models_dir; of a training run with --models_dir checkpoint.
        seed: the same seed gives the same samples (of the same prompt); None for new ones.
        nsamples: how many, or how many for each prompt; without prompts 0 is for no end.
        batch_size: how many are drawn side by side. In float32 it does not change what is drawn; in bfloat16 and int8
            the same size draws the same.
        length: tokens in a sample; None for n_ctx, or half of it after a prompt. Past n_ctx, the prompt counted, the
            model sees the last 3/4 to 4/4 of n_ctx tokens.
        temperature: below 1 the likely becomes likelier, above less so; 0 for always the likeliest token.
        top_k: draw from this many of the likeliest tokens; 0 for all. 40 is a good value.
        top_p: draw from the likeliest tokens that together have this probability; 0 or 1 for all.
        models_dir: where models are.
        checkpoint: one of the model's checkpoints, such as model-best or model-1000, or the path of any;
            without it the newest.
        precision: of the weights: float32, bfloat16 or int8. Less memory, and faster on a CPU. tf32: float32 with
            products in the TF32 of NVIDIA's GPUs from Ampere on, 10 bits of mantissa; elsewhere the same as float32.
        repetition_penalty: above 1 what prompt and sample have already becomes less likely, below 1 likelier.
        truncate: end a sample where this text appears, which is left out; often '<|endoftext|>'.
        stop: the same; may be given several times.
        output: a file for the samples, instead of the terminal.
    """
    model_name: str = '124M'
    seed: int | None = None
    nsamples: int = 0
    batch_size: int = 1
    length: int | None = None
    temperature: float = 1
    top_k: int = 0
    top_p: float = 1
    models_dir: str = 'models'
    checkpoint: str | None = None
    precision: str = 'float32'
    repetition_penalty: float = 1
    truncate: str | None = None
    stop: tuple[str, ...] = ()
    output: str | None = None

    def __post_init__(self):
        self.check('batch_size', self.batch_size >= 1, '1 or more')
        for name in ('nsamples', 'seed'):
            self.check(name, (getattr(self, name) or 0) >= 0, '0 or more')
        require(self.truncate != '', '--truncate needs a text')
        require('' not in self.ends, '--stop needs a text')

    @property
    def ends(self) -> tuple[str, ...]:
        """The texts that end a sample: those of stop, which may be a single one, and of truncate."""
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        return stop if self.truncate is None else (*stop, self.truncate)


@dataclasses.dataclass(frozen=True)
class ExportFlags:
    """Writes a model, or a training run's, in another format.

    Args:
        model_or_run: the name of a directory of models_dir or checkpoint_dir, or the path of one.
        out: the new folder, which must not exist yet.
        models_dir: where models are.
        checkpoint_dir: where runs are.
        checkpoint: one of the model's or run's checkpoints, such as model-best or model-1000, or the path of any;
            without it the newest.
    """
    model_or_run: str
    out: str
    models_dir: str = 'models'
    checkpoint_dir: str = 'checkpoint'
    checkpoint: str | None = None
