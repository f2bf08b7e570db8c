"""Flags that several scripts share, for them and for callers from Python."""
import dataclasses
import re
import typing
from dataclasses import dataclass

from errors import require, require_package
from storage import paths, run_state, template

REQUIRED = dataclasses.MISSING  # as a default
PRECISIONS = ('float32', 'tf32', 'bfloat16')  # of matrix products
WEIGHT_PRECISIONS = (*PRECISIONS, 'int8')  # of weights, for sampling
TF32 = "tf32: products in TF32 on NVIDIA's GPUs"
MODEL = 'a name in models_dir or checkpoint_dir, or a path with a /'
TOP_K = 'draw from so many of the likeliest tokens; 0 for all'
TOP_P = 'draw from the likeliest tokens of this probability in sum; 0 or 1 for all'
TEXTS = ('a file (text, .jsonl, .csv, .tsv, .parquet, maybe packed; .npz of encode.py), folder, quoted glob, '
         'or several, with commas')
NOT_WITH_BEAMS = ('seed', 'batch_size', 'temperature', 'top_k', 'top_p', 'min_p', 'typical_p')
CHECKPOINT = "model-best, model-N or any checkpoint's path; None for the newest"


def flag(default, help, least: int | None = None, choices=()) -> typing.Any:
    """A field of a dataclass of flags; by position only without a default."""
    help = f'{", ".join(choices)}; {help}' if choices else help
    return dataclasses.field(default=default, kw_only=default is not REQUIRED,
                             metadata={'help': help, 'least': least, 'choices': choices})


@dataclass(frozen=True)
class Checked:
    def __post_init__(self):
        for field in dataclasses.fields(self):
            name, value = field.name, getattr(self, field.name)
            least, choices = field.metadata['least'], field.metadata['choices']
            self.check(name, None in (value, least) or value >= least, f'{least} or more')
            self.check(name, not choices or value in (field.default, *choices),
                       f'one of {", ".join(choices)}')

    def check(self, name, valid, expected):
        require(valid, f'--{name} must be {expected}, not {getattr(self, name)!r}')


@dataclass(frozen=True)
class FolderFlags(Checked):
    models_dir: str = flag('models', 'where models are')
    checkpoint_dir: str = flag('checkpoint', 'where runs are')

    def find_model(self, name, **options):  # -> folder
        return paths.find_model(name, self.models_dir, self.checkpoint_dir, **options)


@dataclass(frozen=True)
class ModelFlags(FolderFlags):
    model_name: str = flag('124M', MODEL)


@dataclass(frozen=True)
class TextFlags(ModelFlags):
    """How files become texts and tokens of a model."""
    encoding: str = flag('utf-8', 'of the text files')
    special_tokens: bool = flag(True, 'in text, <|endoftext|> or another special token is one id')
    text_field: str = flag('text', 'of a row, with its text')
    template: str | None = flag(None, "of rows with an answer; None for the model's, or {prompt}{completion}")

    def __post_init__(self):
        super().__post_init__()
        template.Template(self.template or template.DEFAULT)  # refuses another

    def text_options(self, *folders):  # -> of load_dataset.iter_chunks; folders: of templates
        text = self.template or template.find(*folders) or template.DEFAULT
        return self.encoding, self.special_tokens, self.text_field, text


@dataclass(frozen=True)
class DataFlags(TextFlags):
    combine: int = flag(50000, 'join small files to chunks of so many characters', 1)


@dataclass(frozen=True)
class TrainFlags(DataFlags):
    """Fine-tunes a model on text. A run with a checkpoint continues as if it had never stopped."""
    dataset: str = flag(REQUIRED, f'{TEXTS}; these as PATH:WEIGHT,PATH:WEIGHT are mixed')
    batch_size: int = flag(1, 'windows of n_ctx tokens in a batch', 1)
    learning_rate: float = flag(2e-5, 'of the optimizer')
    accumulate_gradients: int = flag(1, 'batches averaged for one update', 1)
    memory_saving_gradients: bool = flag(False, 'less memory, a sixth slower')
    lora_rank: int = flag(0, 'train an adapter of this rank, and the model not; 0: the model', 0)
    lora_alpha: float = flag(16.0, 'the adapter counts lora_alpha / lora_rank times')
    lora_targets: str = flag('attn', 'products that it adapts', choices=tuple(run_state.TARGETS))
    only_train_transformer_layers: bool = flag(False, 'train no embeddings and no last normalization')
    optimizer: str = flag('adam', 'adafactor has little state', choices=('adam', 'adamw', 'adafactor', 'sgd'))
    precision: str = flag('float32', f'bfloat16: faster, less memory; {TF32}', choices=PRECISIONS)
    xla: bool = flag(False, 'compile the whole update as one kernel; for GPUs')
    warmup_steps: int = flag(0, 'updates until the full learning rate', 0)
    schedule: str = flag('constant', 'of the learning rate', choices=('constant', 'cosine', 'linear'))
    weight_decay: float | None = flag(None, 'of matrices; None: 0.01 with adamw, else 0', 0)
    clip_norm: float = flag(0.0, 'scale greater gradients down to this norm; 0 for never', 0)
    isolate_documents: bool = flag(False, 'no document in a window sees another; for short ones, and answers')
    noise: float = flag(0.0, 'share of input tokens made random, against overfitting')
    top_k: int = flag(40, f'of samples: {TOP_K}', 0)
    top_p: float = flag(0.0, f'of samples: {TOP_P}')
    restore_from: str = flag('latest', 'latest (of the run, or the model), fresh (the model), or a path')
    run_name: str = flag('run1', 'names its folders in checkpoint_dir and samples_dir')
    samples_dir: str = flag('samples', 'where samples are written')
    sample_every: int = flag(100, 'updates between samples; 0 for none', 0)
    sample_length: int | None = flag(None, 'tokens in a sample; None for n_ctx - 1', 1)
    sample_num: int = flag(1, 'samples at a time', 0)
    save_every: int = flag(1000, 'updates between checkpoints; the end has one, too', 0)
    steps: int | None = flag(None, "updates in all, with earlier sessions; None for no end", 0)
    seed: int | None = flag(None, 'of data order, noise and samples; None for a new one, kept on resume', 0)
    val_dataset: str | None = flag(None, 'as dataset; None: val_every holds out its last 5%')
    val_batch_size: int = flag(2, 'windows in a validation batch', 1)
    val_batch_count: int = flag(40, 'validation batches, always the same', 1)
    val_every: int = flag(0, 'updates between validations; model-best is of the best; 0 for none', 0)
    patience: int = flag(0, 'stop after so many validations without a lower loss; 0 for never', 0)
    log_to: str | None = flag(None, 'also log to this package', choices=('wandb', 'trackio'))

    def __post_init__(self):
        super().__post_init__()
        self.check('learning_rate', self.learning_rate > 0, 'above 0')
        self.check('lora_alpha', self.lora_alpha > 0, 'above 0')
        self.check('noise', 0 <= self.noise < 1, 'from 0 to below 1')
        self.check('top_p', 0 <= self.top_p <= 1, 'from 0 to 1')
        require(self.schedule == 'constant' or self.steps, f'--schedule {self.schedule} needs --steps')
        require(not self.patience or self.val_every, '--patience needs --val_every')
        if self.log_to:
            require_package(self.log_to, '--log_to')


@dataclass(frozen=True)
class HorovodFlags(TrainFlags):
    """Fine-tunes a model on text in N processes: batches of B are as batches of N·B with train.py."""
    compression: str = flag('none', 'of gradients for sending', choices=('none', 'float16', 'bfloat16'))
    timeout: int = flag(120, 'seconds until all processes end if one does not answer; 0 for never', 0)


@dataclass(frozen=True)
class SamplingFlags(ModelFlags):
    """Draws samples of a model."""
    seed: int | None = flag(None, 'the same gives the same samples; None for new ones', 0)
    nsamples: int = flag(0, 'how many; 0 for no end, or all beams', 0)
    batch_size: int = flag(1, 'samples drawn side by side', 1)
    length: int | None = flag(None, 'tokens in a sample; None for n_ctx, or after a prompt half of it', 1)
    temperature: float = flag(1, 'below 1 the likely becomes likelier; 0: the likeliest token')
    top_k: int = flag(0, f'{TOP_K}. 40 is a good value')
    top_p: float = flag(1, TOP_P)
    min_p: float = flag(0, "draw from tokens with this share of the likeliest's probability; 0 for all")
    typical_p: float = flag(1, 'draw from the most typical tokens of this probability in sum; 0 or 1 for all')
    checkpoint: str | None = flag(None, CHECKPOINT)
    precision: str = flag('float32', f'the last two: less memory, faster on a CPU; {TF32}',
                          choices=WEIGHT_PRECISIONS)
    repetition_penalty: float = flag(1, 'above 1, earlier tokens become less likely')
    no_repeat_ngram: int = flag(0, 'no so many tokens twice in a text, prompt included; 0 for no rule', 0)
    logit_bias: tuple[str, ...] = flag((), "ID:BIAS, added to this token's logit; may be repeated")
    beams: int = flag(0, 'search for the likeliest samples, with so many beams; 0: draw them', 0)
    prompt_lookup: bool = flag(True, 'faster where one sample in float32 repeats its text; the same tokens')
    truncate: str | None = flag(None, "end a sample before this text, often '<|endoftext|>'")
    stop: tuple[str, ...] = flag((), 'the same; may be repeated')
    output: str | None = flag(None, 'a file for the samples')

    def __post_init__(self):
        super().__post_init__()
        require('' not in self.ends, '--stop and --truncate need a text')
        self.check('output', self.output != '', 'the name of a file')
        for text in self.logit_bias:
            require(re.fullmatch(r'\d+:[+-]?(\d+\.?\d*|\.\d+)', text),
                    f'--logit_bias must be ID:BIAS, such as 50256:-100, not {text!r}')
        if self.beams:
            drawing = [f'--{field.name}' for field in dataclasses.fields(self)
                       if field.name in NOT_WITH_BEAMS and getattr(self, field.name) != field.default]
            require(not drawing, f'--beams draws nothing at random; leave out {", ".join(drawing)}')
            self.check('beams', self.beams > 1, '2 or more (for 1, give --temperature 0)')
            self.check('nsamples', self.nsamples <= self.beams, f'at most --beams, {self.beams}')

    @property
    def ends(self) -> tuple[str, ...]:
        """The texts that end a sample: stop, which may be one text, and truncate."""
        stop = [self.stop] if isinstance(self.stop, str) else self.stop
        return tuple(stop) if self.truncate is None else (*stop, self.truncate)

    @property
    def biases(self) -> dict[int, float]:
        """logit_bias as {id: bias}."""
        return {int(token): float(bias) for token, bias in (text.split(':') for text in self.logit_bias)}


@dataclass(frozen=True)
class ExportFlags(FolderFlags):
    """Writes a model, or a training run's, in another format."""
    model_or_run: str = flag(REQUIRED, MODEL)
    out: str = flag(REQUIRED, 'a folder, which must not exist yet')
    checkpoint: str | None = flag(None, CHECKPOINT)


@dataclass(frozen=True)
class FromPeftFlags(ModelFlags):
    directory: str = flag(REQUIRED, 'has adapter_config.json and adapter_model.safetensors')
    name: str = flag(REQUIRED, 'of the new run')
