"""The SavedModel, asked by a process that has TensorFlow and none of this project, as others would load
it."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import numpy_gpt2
import pytest
import tensorflow.compat.v1 as tf
import toy
from tensorflow.core.protobuf import saved_model_pb2

import encoder
import sample
from export import export
from fast import kernels
from generation import generator
from interactive_conditional_samples import interact_model

CONTEXTS = [[3, 1, 4, 1, 5], [9, 2], [6]]
PADDED = [[3, 1, 4, 1, 5], [-1, -1, -1, 9, 2], [-1, -1, -1, -1, 6]]
LENGTH = 20
GREEDY = {'length': LENGTH, 'temperature': 0, 'top_k': 0, 'top_p': 1, 'seed': 0}
DRAWN = [  # controls
    {'temperature': 1}, {'temperature': 0.5, 'seed': 2 ** 40}, {'top_k': 3}, {'top_p': 0.6, 'seed': -1},
    {'temperature': 1.5, 'top_k': 12, 'top_p': 0.7}, {'top_k': 1}]
REFUSED = [
    ('generate', {'tokens': [[1] * 13]}, '[a context of] [13] [tokens and] [20] [more exceed n_ctx, 32]'),
    ('generate', {'length': 40}, 'n_ctx, 32'), ('generate', {'length': 2 ** 31 - 1}, 'n_ctx, 32'),
    ('generate', {'length': 0}, '[length must be 1 or more, not] [0]'),
    ('generate', {'length': -1}, '[length must be 1 or more, not] [-1]'),
    ('generate', {'temperature': -0.5}, '[temperature must be 0 or more, not] [-0.5]'),
    ('generate', {'temperature': float('nan')}, '[temperature must be 0 or more, not] [nan]'),
    ('generate', {'top_k': -1}, '[top_k must be 0 or more, not] [-1]'),
    ('generate', {'top_p': 1.5}, '[top_p must be from 0 to 1, not] [1.5]'),
    ('generate', {'tokens': [[5, 557]]}, '-1 at its left alone, not] [[5 557]]'),
    ('generate', {'tokens': [[-2, 5]]}, 'not] [[-2 5]]'),
    ('generate', {'tokens': [[5, -1]]}, '-1 at its left alone, not] [[5 -1]]'),
    ('generate', {'tokens': [[5, -1, 5]]}, 'each row must have tokens from 0 to 556, and -1'),
    ('generate', {'tokens': [[5], [-1]]}, 'each row must have tokens from 0 to 556, and -1'),
    ('generate', {'tokens': [[]]}, 'each row must have tokens from 0 to 556, and -1'),
    ('logits', {'tokens': [[1] * 33]}, '[a context of] [33] [tokens and] [0] [more exceed n_ctx, 32]'),
    ('logits', {'tokens': [[557]]}, 'each row must have tokens from 0 to 556'),
    ('logits', {'tokens': [[1, -1]]}, 'each row must have tokens from 0 to 556, and -1'),
]

# What a client does: values become tensors of the types that the signature names, as TensorFlow Serving
# makes them.
CLIENT = """
import json, sys
import tensorflow as tf

requests = json.load(sys.stdin)
signatures = tf.saved_model.load(sys.argv[1]).signatures
answers = []
for signature, inputs in requests:
    function = signatures[signature]
    types = function.structured_input_signature[1]
    given = {name: tf.constant(value, types[name].dtype) for name, value in inputs.items()}
    try:
        outputs = function(**given)
    except tf.errors.InvalidArgumentError as error:
        answers.append(str(error))
    else:
        answers.append({name: [str(x.dtype.name), x.numpy().tolist()] for name, x in outputs.items()})
described = {name: {key: [x.dtype.name, x.shape.as_list()] for key, x in [
                 *function.structured_input_signature[1].items(), *function.structured_outputs.items()]}
             for name, function in signatures.items()}
files = [getattr(module, '__file__', None) or '' for module in list(sys.modules.values())]
json.dump({'answers': answers, 'signatures': described, 'path': sys.path, 'files': files}, sys.stdout)
"""


@pytest.fixture(scope='module')
def exported(models, tmp_path_factory):
    """The SavedModel of `toy`, made as if all its kernels were worth compiling."""
    out = tmp_path_factory.mktemp('served') / 'toy' / '1'
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, 'MIN_FUSED_ELEMENTS', 0)
        export('toy', str(out), models_dir=str(models[0]))
    return out


def generate(tokens, **controls):
    return ['generate', {'tokens': tokens, **GREEDY, 'temperature': 1, 'seed': 7, **controls}]


@pytest.fixture(scope='module')
def client(exported, tmp_path_factory):
    """What a process says that has asked all that the tests want to know: {request as JSON: answer}, and the
    rest."""
    batches = [PADDED, *([row] for row in CONTEXTS)]
    requests = [['logits', {'tokens': each}] for each in (*batches, [[1] * 32])]
    requests += [['generate', {'tokens': each, **GREEDY}] for each in (*batches, [[5] * 12])]
    requests += [generate(each, **controls) for controls in DRAWN for each in (PADDED, CONTEXTS[:1])]
    requests += [[name, changes] if name == 'logits' else generate(**{'tokens': [[1]], **changes})
                 for name, changes, _ in REFUSED]
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(('PYTHON', 'TF_'))
    }
    done = subprocess.run(
        [sys.executable, '-I', '-c', CLIENT, str(exported)],
        input=json.dumps(requests),
        text=True,
        capture_output=True,
        timeout=300,
        cwd=tmp_path_factory.mktemp('elsewhere'),
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    said['answers'] = {
        json.dumps(request): answer for request, answer in zip(requests, said['answers'], strict=True)
    }
    return said


@pytest.fixture
def ask(client):
    def answer(signature, inputs):
        (dtype, values), = client['answers'][json.dumps([signature, inputs])].values()
        assert dtype == {'logits': 'float32', 'generate': 'int32'}[signature]
        return np.array(values, dtype)
    return answer


# What others load

def test_the_process_that_asks_has_nothing_of_this_project(client):
    project = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    environment = os.path.dirname(
        os.path.dirname(os.path.dirname(os.path.dirname(np.__file__)))
    )  # may be in it
    assert [each for each in client['path'] + client['files']
            if each.startswith(project) and not each.startswith(environment)] == []


def test_the_signatures_are_those_documented(client):
    scalars = {'length': ['int32', []], 'temperature': ['float32', []], 'top_k': ['int32', []],
               'top_p': ['float32', []], 'seed': ['int64', []]}
    assert client['signatures'] == {
        'logits': {'tokens': ['int32', [None, None]], 'logits': ['float32', [None, 557]]},
        'generate': {'tokens': ['int32', [None, None]], **scalars},
    }


def test_nothing_in_it_is_compiled_by_xla_or_python_or_names_this_machine(exported):
    data = (exported / 'saved_model.pb').read_bytes()
    meta, = saved_model_pb2.SavedModel.FromString(data).meta_graphs
    nodes = [
        *meta.graph_def.node,
        *(node for each in meta.graph_def.library.function for node in each.node_def),
    ]
    assert len(nodes) > 500 and 'MatMul' in {node.op for node in nodes}
    assert [node.op for node in nodes if node.op.startswith(('Xla', 'PyFunc', 'EagerPyFunc'))] == []
    attributes = {name for each in (*nodes, *meta.graph_def.library.function) for name in each.attr}
    assert attributes & {'_XlaMustCompile', '_gradient_op_type'} == set()
    assert str(exported.parent).encode() not in data


def test_variables_are_the_checkpoints_and_no_others(exported, models):
    reader = tf.train.load_checkpoint(str(exported / 'variables' / 'variables'))
    found = {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
    assert found.keys() == models[2].keys()
    for name, value in models[2].items():
        assert found[name].dtype == np.float32 and (found[name] == value).all()


def test_sizes_and_vocabulary_are_beside_it(exported, models):
    assert sorted(path.name for path in exported.iterdir()) == ['assets.extra', 'saved_model.pb', 'variables']
    files = {path.name: path.read_bytes() for path in (exported / 'assets.extra').iterdir()}
    assert files == {name: (models[0] / 'toy' / name).read_bytes()
                     for name in ('hparams.json', 'encoder.json', 'vocab.bpe')}


def test_special_tokens_are_beside_it_where_the_model_has_some(models, tmp_path):
    shutil.copytree(models[0], tmp_path / 'models')
    content = b'{"tokens": ["x"], "end": "x"}'
    (tmp_path / 'models' / 'toy' / 'special_tokens.json').write_bytes(content)
    export('toy', str(tmp_path / 'out'), models_dir=str(tmp_path / 'models'))
    assert (tmp_path / 'out' / 'assets.extra' / 'special_tokens.json').read_bytes() == content


# logits

def test_logits_are_those_of_the_reference_for_rows_of_any_length(ask, models):
    _, hp, values = models
    expected = np.array([numpy_gpt2.logits(values, row, hp.n_head)[-1] for row in CONTEXTS])
    np.testing.assert_allclose(ask('logits', {'tokens': PADDED}), expected, rtol=1e-5, atol=1e-5)
    for row, logits in zip(CONTEXTS, expected, strict=True):
        np.testing.assert_allclose(ask('logits', {'tokens': [row]}), logits[None], rtol=1e-5, atol=1e-5)


def test_logits_of_a_full_window(ask, models):
    _, hp, values = models
    expected = numpy_gpt2.logits(values, [1] * hp.n_ctx, hp.n_head)[-1:]
    np.testing.assert_allclose(ask('logits', {'tokens': [[1] * hp.n_ctx]}), expected, rtol=1e-5, atol=1e-5)


# generate

def test_greedy_tokens_are_those_of_the_reference(ask, models):
    _, hp, values = models
    together = ask('generate', {'tokens': PADDED, **GREEDY})
    assert together[:, :5].tolist() == PADDED
    for i, row in enumerate(CONTEXTS):
        expected = numpy_gpt2.greedy(values, row, hp.n_head, LENGTH)
        assert len(set(expected)) > 5
        assert together[i, 5:].tolist() == expected
        assert ask('generate', {'tokens': [row], **GREEDY}).tolist() == [row + expected]


def test_greedy_tokens_up_to_the_end_of_the_window(ask, models):
    _, hp, values = models
    expected = numpy_gpt2.greedy(values, [5] * 12, hp.n_head, LENGTH)
    assert ask('generate', {'tokens': [[5] * 12], **GREEDY}).tolist() == [[5] * 12 + expected]


@pytest.mark.parametrize('controls', DRAWN)
def test_drawn_tokens_are_those_of_sample_sequence(ask, models, monkeypatch, controls):
    """Row i has the key (seed, i), whatever stands beside it."""
    _, hp, values = models
    monkeypatch.setattr(kernels, 'MIN_FUSED_ELEMENTS', 1 << 60)  # compiling would take seconds
    signature, inputs = generate(PADDED, **controls)
    numbers = {name: inputs[name] for name in ('length', 'temperature', 'top_k', 'top_p')}
    with toy.session() as s:
        drawn = [sample.sample_sequence(hparams=hp, context=tf.constant([row]),
                                        seed=tf.constant([[inputs['seed'], i]], tf.int64), **numbers)
                 for i, row in enumerate(CONTEXTS)]
        toy.assign(s, values)
        drawn = s.run(drawn)
    assert [row[-LENGTH:].tolist() for row in ask(signature, inputs)] == [
        row[0, -LENGTH:].tolist() for row in drawn
    ]
    assert ask(*generate(CONTEXTS[:1], **controls)).tolist() == drawn[0].tolist()


@pytest.mark.parametrize('controls', [{}, {'temperature': 1.5, 'top_k': 40, 'top_p': 0.9}, {'top_p': 0.8}])
def test_script_generator_sample_sequence_and_saved_model_draw_the_same_tokens(
    exported, models, tmp_path, capsys, monkeypatch, controls
):
    """Of several prompts of several lengths, and of one prompt several times."""
    monkeypatch.setattr(kernels, 'MIN_FUSED_ELEMENTS', 1 << 60)
    gpt2 = generator.load('toy', str(models[0]))
    prompts = ['The keeper', 'a', 'The light and the sea']
    contexts = [gpt2.enc.encode(prompt) for prompt in prompts]
    assert len(set(map(len, contexts))) == 3
    controls = {'length': 12, 'temperature': 1, 'top_k': 0, 'top_p': 1, **controls}
    with toy.session() as s, tf.Graph().as_default(), tf.Session() as served:
        signature = tf.saved_model.load(served, ['serve'], str(exported)).signature_def['generate']
        for rows in (contexts, contexts[2:] * 3):
            with s.graph.as_default():
                drawn = sample.sample_sequence(hparams=gpt2.hparams, context=generator.padded(rows), seed=7,
                                               vocabulary=gpt2.enc.decoder, **controls)
                toy.assign(s, models[2])
                drawn = s.run(drawn)[:, -12:].tolist()
            assert len({token for row in drawn for token in row}) > 12
            tokens, _ = zip(*gpt2.stream(rows, [[7, i] for i in range(3)], **controls), strict=True)
            assert np.transpose(tokens).tolist() == drawn
            inputs = {'tokens': generator.padded(rows), 'seed': 7, **controls}
            tokens = served.run(signature.outputs['tokens'].name,
                                {signature.inputs[name].name: value for name, value in inputs.items()})
            assert tokens[:, -12:].tolist() == drawn
    (tmp_path / 'p.txt').write_text(prompts[2], encoding='utf-8')
    interact_model(
        model_name='toy',
        models_dir=str(models[0]),
        prompts_file=str(tmp_path / 'p.txt'),
        seed=7,
        nsamples=3,
        **controls,
    )
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line)['tokens'] for line in lines] == drawn


@pytest.mark.parametrize('controls', DRAWN)
def test_drawn_tokens_are_of_those_that_the_controls_leave(ask, models, controls):
    _, hp, values = models
    signature, inputs = generate(PADDED, **controls)
    likeliest = 0
    for context, row in zip(CONTEXTS, ask(signature, inputs)[:, 5:].tolist(), strict=True):
        logits = numpy_gpt2.logits(values, context + row, hp.n_head)[len(context) - 1:-1]
        for token, p in zip(row, numpy_gpt2.softmax(logits / inputs['temperature']), strict=True):
            assert numpy_gpt2.truncated(p, inputs['top_k'], inputs['top_p'])[token] > 0
            likeliest += token == p.argmax()
    assert (likeliest == 3 * LENGTH) == (inputs['top_k'] == 1)


def test_other_controls_and_seeds_draw_other_tokens(ask):
    drawn = [ask(*generate(PADDED, **controls)).tolist() for controls in DRAWN]
    assert all(drawn.count(each) == 1 for each in drawn)


@pytest.mark.parametrize('name, changes, message', REFUSED)
def test_what_cannot_be_used_ends_the_run_with_a_message(client, name, changes, message):
    request = [name, changes] if name == 'logits' else generate(**{'tokens': [[1]], **changes})
    answer = client['answers'][json.dumps(request)]
    assert isinstance(answer, str) and message in answer


def test_ids_without_a_text_are_not_drawn_and_have_their_logits(tmp_path, monkeypatch):
    monkeypatch.setattr(kernels, 'MIN_FUSED_ELEMENTS', 1 << 60)
    hp, values = toy.write_padded_model(tmp_path / 'padded')
    export('padded', str(tmp_path / 'out'), models_dir=str(tmp_path))
    has_text = encoder.get_encoder('padded', str(tmp_path)).decoder.keys()
    with toy.session() as s:
        signatures = tf.saved_model.load(s, ['serve'], str(tmp_path / 'out')).signature_def

        def ask(name, **inputs):
            (output,) = signatures[name].outputs.values()
            return s.run(
                output.name, {signatures[name].inputs[key].name: value for key, value in inputs.items()}
            )

        logits = ask('logits', tokens=CONTEXTS[:1])
        drawn = ask('generate', tokens=CONTEXTS[:1] * 20, **{**GREEDY, 'temperature': 1})
        greedy = ask('generate', tokens=CONTEXTS[:1], **GREEDY)[0, 5:].tolist()
    np.testing.assert_allclose(
        logits[0], numpy_gpt2.logits(values, CONTEXTS[0], hp.n_head)[-1], rtol=1e-4, atol=1e-5
    )
    assert set(drawn[:, 5:].flat) <= has_text
    assert not has_text >= set(numpy_gpt2.greedy(values, CONTEXTS[0], hp.n_head, LENGTH))  # of all ids
    for i, token in enumerate(greedy):
        logits = numpy_gpt2.logits(values, CONTEXTS[0] + greedy[:i], hp.n_head)[-1]
        assert token == max(has_text, key=logits.__getitem__)


# The script
