"""Flags that several scripts have, listed once for the scripts and for callers from Python."""
import dataclasses
import typing

from errors import InputError
from fast.precision import PRECISIONS

COMPRESSIONS = ('none', 'float16', 'bfloat16')
REQUIRED = dataclasses.MISSING  # in place of a default
TF32 = "tf32: products in TF32 on NVIDIA's GPUs from Ampere on, else float32"
MODEL = 'a name in models_dir or checkpoint_dir, or a path with a / in it'
TOP_K = 'draw from this many of the likeliest tokens; 0 for all'
TOP_P = 'draw from the likeliest tokens of together this probability; 0 or 1 for all'
CHECKPOINT = 'a checkpoint of it, such as model-best or model-1000, or the path of any; None for the newest'


def flag(default, help: str, least: int | None = None, choices: tuple[str, ...] = ()) -> typing.Any:
    """A field of a dataclass of flags, with its help, and its least value or the words that it may be."""
    return dataclasses.field(default=default, metadata={'help': help, 'least': least, 'choices': choices})


class Checked:
    """A dataclass of flags whose values are checked."""

    def __post_init__(self):
        for field in dataclasses.fields(typing.cast(typing.Any, self)):
            value, least, choices = getattr(self, field.name), *map(field.metadata.get, ('least', 'choices'))
            self.check(field.name, None in (value, least) or value >= least, f'{least} or more')
            self.check(field.name, not choices or value in choices, f'one of {", ".join(choices or ())}')

    def check(self, name: str, valid: bool, expected: str):
        """Raises InputError, which names the flag, what is expected and what came, unless valid."""
        if not valid:
            raise InputError(f'--{name} must be {expected}, not {getattr(self, name)!r}')


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainFlags(Checked):
    """Fine-tunes a model on text.

    If the run has a checkpoint, training continues exactly as if it had never stopped.
    """
    dataset: str = flag(REQUIRED, 'a text file, .npz of encode.py, directory, glob, or several, with commas')
    model_name: str = flag('124M', f'the model or run to start from: {MODEL}')
    models_dir: str = flag('models', 'where models are')
    combine: int = flag(50000, 'small files are joined to chunks of at least this many characters', 1)
    encoding: str = flag('utf-8', 'of the text files')
    special_tokens: bool = flag(True, 'in text files, <|endoftext|> and other special tokens are themselves')
    batch_size: int = flag(1, 'windows of n_ctx tokens in a batch', 1)
    learning_rate: float = flag(2e-5, 'of the optimizer')
    accumulate_gradients: int = flag(1, 'batches that are averaged for one update', 1)
    memory_saving_gradients: bool = flag(False, 'keep one activation a layer: less memory, a sixth slower')
    only_train_transformer_layers: bool = flag(False, 'train no embeddings and no last normalization')
    optimizer: str = flag('adam', 'adam, adamw, adafactor (next to no memory of its own) or sgd',
                          choices=('adam', 'adamw', 'adafactor', 'sgd'))
    precision: str = flag('float32', f'of products and activations; bfloat16: faster, less memory; {TF32}; '
                                     'of weights always float32', choices=PRECISIONS)
    xla: bool = flag(False, 'compile the whole update as one kernel; for GPUs')
    warmup_steps: int = flag(0, 'updates over which the learning rate rises to its full value', 0)
    schedule: str = flag('constant', 'of the learning rate after that; cosine and linear end in 0 at --steps',
                         choices=('constant', 'cosine', 'linear'))
    weight_decay: float | None = flag(None, 'share of matrix weights, times the learning rate, taken off at '
                                            'an update; None: 0.01 with adamw, else 0', 0)
    clip_norm: float = flag(0.0, 'gradients with a greater norm are scaled down to this one; 0 for never', 0)
    noise: float = flag(0.0, 'share of input tokens replaced by random ones, against overfitting')
    top_k: int = flag(40, f'of samples: {TOP_K}', 0)
    top_p: float = flag(0.0, f'of samples: {TOP_P}')
    restore_from: str = flag('latest', "latest (the run's last checkpoint, or the model), fresh (the model), "
                                       'or the path of a checkpoint, like checkpoint/run1/model-1000')
    run_name: str = flag('run1', 'names the folders of the run below checkpoint_dir and samples_dir')
    checkpoint_dir: str = flag('checkpoint', 'where runs are saved')
    samples_dir: str = flag('samples', 'where samples are written')
    sample_every: int = flag(100, 'updates between samples; 0 for none', 0)
    sample_length: int | None = flag(None, 'tokens in a sample; None for n_ctx - 1', 1)
    sample_num: int = flag(1, 'samples at a time', 0)
    save_every: int = flag(1000, 'updates between checkpoints; the end, signals and errors save one too', 0)
    steps: int | None = flag(None, "updates in all, with the run's earlier sessions; None for no end", 0)
    seed: int | None = flag(None, 'of data order, noise and samples; None for a new one, kept on resume', 0)
    val_dataset: str | None = flag(None, 'as dataset; None: val_every holds out the last 5% of the dataset')
    val_batch_size: int = flag(2, 'windows in a validation batch', 1)
    val_batch_count: int = flag(40, 'validation batches; always the same windows', 1)
    val_every: int = flag(0, 'updates between validations, the best of which model-best keeps; 0 for none', 0)
    patience: int = flag(0, 'stop after so many validations without a lower loss; 0 for never', 0)

    def __post_init__(self):
        super().__post_init__()
        self.check('learning_rate', self.learning_rate > 0, 'above 0')
        self.check('noise', 0 <= self.noise < 1, 'from 0 to below 1')
        self.check('top_p', 0 <= self.top_p <= 1, 'from 0 to 1')
        if self.schedule != 'constant' and not self.steps:
            raise InputError(f'--schedule {self.schedule} needs --steps, where it ends')
        if self.patience and not self.val_every:
            raise InputError('--patience counts validations: give --val_every too')


@dataclasses.dataclass(frozen=True, kw_only=True)
class HorovodFlags(TrainFlags):
    """Fine-tunes a model on text in several processes: N with batches of B are one with batches of N·B.

    Every other flag is train.py's, and a run can go on with either script and with any number of processes.
    """
    compression: str = flag('none', 'of gradients for sending: float16 and bfloat16 are half the bytes',
                            choices=COMPRESSIONS)
    timeout: int = flag(120, 'seconds until all processes end if one does not answer: it hangs, a cable is '
                             'pulled. Its work while the others wait may last longer. 0 for never', 0)


@dataclasses.dataclass(frozen=True)
class SamplingFlags(Checked):
    """Draws samples of a model."""
    model_name: str = flag('124M', f'the model or run: {MODEL}')
    seed: int | None = flag(None, 'the same gives the same samples of the same prompt; None for new ones', 0)
    nsamples: int = flag(0, 'how many, or how many for each prompt; without prompts 0 is for no end', 0)
    batch_size: int = flag(1, 'samples drawn side by side; it changes them only in bfloat16 and int8', 1)
    length: int | None = flag(None, 'tokens in a sample; None for n_ctx, or after a prompt half of it. Past '
                                    'n_ctx, the model sees the last 3/4 to 4/4 of n_ctx tokens')
    temperature: float = flag(1, 'below 1 the likely becomes likelier, above less so; 0: the likeliest token')
    top_k: int = flag(0, f'{TOP_K}. 40 is a good value')
    top_p: float = flag(1, TOP_P)
    models_dir: str = flag('models', 'where models are')
    checkpoint: str | None = flag(None, CHECKPOINT)
    precision: str = flag('float32', f'of the weights; bfloat16, int8: less memory, faster on a CPU; {TF32}')
    repetition_penalty: float = flag(1, 'above 1, tokens that were there become less likely; below, more')
    truncate: str | None = flag(None, "end a sample before this text, which often is '<|endoftext|>'")
    stop: tuple[str, ...] = flag((), 'the same; may be given several times')
    output: str | None = flag(None, 'a file for the samples, instead of the terminal')
    checkpoint_dir: str = flag('checkpoint', 'where runs are')

    def __post_init__(self):
        super().__post_init__()
        if '' in (self.truncate, *self.ends):
            raise InputError(f'--{"truncate" if self.truncate == "" else "stop"} needs a text')

    @property
    def ends(self) -> tuple[str, ...]:
        """The texts that end a sample: those of stop, which may be a single one, and of truncate."""
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        return stop if self.truncate is None else (*stop, self.truncate)


@dataclasses.dataclass(frozen=True)
class ExportFlags:
    """Writes a model, or a training run's, in another format."""
    model_or_run: str = flag(REQUIRED, MODEL)
    out: str = flag(REQUIRED, 'the new folder, which must not exist yet')
    models_dir: str = flag('models', 'where models are')
    checkpoint_dir: str = flag('checkpoint', 'where runs are')
    checkpoint: str | None = flag(None, CHECKPOINT)
