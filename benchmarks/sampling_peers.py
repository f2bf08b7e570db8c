"""Other programs that sample, on models of the same sizes with random weights: their speed does not depend on
what the weights are. Each peer is a function whose steps give seconds, for a process of its own."""
import json
import os

import measure  # before the project's own: it makes their import possible

import random_model

PEERS = {  # name of the function: packages
    'transformers': ('transformers', 'torch'),
    'ctranslate2': ('ctranslate2', 'transformers', 'torch'),
    'llama_cpp': ('llama_cpp', 'gguf', 'transformers', 'torch'),
    'openvino': ('openvino_genai', 'openvino_tokenizers', 'optimum', 'transformers', 'torch')}


def transformers(directory, precision, rows, tokens, prompt=1):
    import torch
    from transformers import GPT2LMHeadModel
    model = GPT2LMHeadModel.from_pretrained(os.path.join(directory, 'peer'),
                                            dtype=getattr(torch, precision)).eval()
    context = torch.full([rows, prompt], 64)

    def sample():
        with torch.inference_mode():
            model.generate(context, attention_mask=torch.ones_like(context), do_sample=True, top_k=40,
                           min_new_tokens=tokens, max_new_tokens=tokens, pad_token_id=0)
    yield from measure.seconds(sample, warm_up=1)


def ctranslate2(directory, precision, rows, tokens, prompt=1):
    import ctranslate2
    model = ctranslate2.Generator(os.path.join(directory, f'peer-{precision}'), compute_type=precision,
                                  intra_threads=os.cpu_count())

    def sample():
        model.generate_batch([['t64'] * prompt] * rows, min_length=tokens, max_length=tokens,
                             sampling_topk=40, include_prompt_in_result=False, max_batch_size=rows)
    yield from measure.seconds(sample, warm_up=1)


def llama_cpp(directory, precision, rows, tokens, prompt=1):
    import llama_cpp
    cores = os.cpu_count()
    model = llama_cpp.Llama(os.path.join(directory, f'peer-{precision}.gguf'), n_ctx=1024, n_batch=1024,
                            n_ubatch=1024, n_threads=cores, n_threads_batch=cores, verbose=False)

    def sample():
        model.reset()  # else a prompt is not computed again
        drawn = model.generate([64] * prompt, top_k=40, top_p=1.0, min_p=0.0, temp=1.0)
        for _ in range(tokens):
            next(drawn)
    yield from measure.seconds(sample, warm_up=1)


def openvino(directory, precision, rows, tokens, prompt=1):
    import numpy as np
    import openvino
    import openvino_genai
    exact = {'INFERENCE_PRECISION_HINT': 'f32'} if precision == 'float32' else {}  # else bfloat16
    pipe = openvino_genai.LLMPipeline(os.path.join(directory, f'peer-openvino-{precision}'), 'CPU', **exact)
    config = openvino_genai.GenerationConfig(do_sample=True, top_k=40, ignore_eos=True, min_new_tokens=tokens,
                                             max_new_tokens=tokens)
    context = openvino.Tensor(np.full([rows, prompt], 64, np.int64))

    def sample():
        pipe.generate(context, config)
    yield from measure.seconds(sample, warm_up=1)


# Their models

def make(directory, names):
    from transformers import GPT2Config, GPT2LMHeadModel
    path = os.path.join(directory, 'peer')
    model = GPT2LMHeadModel(GPT2Config())
    model.save_pretrained(path)
    with open(os.path.join(path, 'vocab.json'), 'w', encoding='utf-8') as file:
        json.dump({'<|endoftext|>' if i == 50256 else f't{i}': i for i in range(random_model.N_VOCAB)}, file)
    with open(os.path.join(path, 'merges.txt'), 'w', encoding='utf-8') as file:
        file.write('#version: 0.2\n')
    for precision in ('float32', 'int8'):
        if 'ctranslate2' in names:
            import ctranslate2
            ctranslate2.converters.TransformersConverter(path).convert(f'{path}-{precision}',
                                                                       quantization=precision)
        if 'llama_cpp' in names:
            write_gguf(f'{path}-{precision}.gguf', model, precision)
        if 'openvino' in names:
            write_openvino(f'{path}-openvino-{precision}', path, precision)
    yield


def write_gguf(path, model, precision):
    import gguf
    config, types = model.config, gguf.GGMLQuantizationType
    matrix_type = types.Q8_0 if precision == 'int8' else types.F32
    writer = gguf.GGUFWriter(path, 'gpt2')
    writer.add_context_length(config.n_positions)
    writer.add_embedding_length(config.n_embd)
    writer.add_feed_forward_length(4 * config.n_embd)
    writer.add_block_count(config.n_layer)
    writer.add_head_count(config.n_head)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)
    writer.add_tokenizer_model('gpt2')
    writer.add_tokenizer_pre('gpt-2')
    writer.add_token_list([f't{i}' for i in range(config.vocab_size)])
    writer.add_token_types([gguf.TokenType.NORMAL] * config.vocab_size)
    writer.add_token_merges(['t 0'])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GPT2, config.n_layer)
    for name, tensor in model.state_dict().items():
        if name == 'lm_head.weight':
            continue
        values = tensor.numpy()
        is_matrix = values.ndim == 2 and 'wpe' not in name
        values = values.T if is_matrix and 'wte' not in name else values
        kind = matrix_type if is_matrix else types.F32
        writer.add_tensor(names.get_name(name, ('.weight', '.bias')), gguf.quants.quantize(values, kind),
                          raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_openvino(path, source, precision):
    import openvino
    import openvino_tokenizers
    from optimum.intel import OVModelForCausalLM
    from transformers import GPT2TokenizerFast
    model = OVModelForCausalLM.from_pretrained(source, export=True, load_in_8bit=precision == 'int8')
    model.save_pretrained(path)
    parts = openvino_tokenizers.convert_tokenizer(GPT2TokenizerFast.from_pretrained(source),
                                                  with_detokenizer=True)
    for name, part in zip(('tokenizer', 'detokenizer'), parts, strict=True):
        openvino.save_model(part, os.path.join(path, f'openvino_{name}.xml'))
