"""The likeliest continuations of a context, by beam search."""
import numpy as np

import sample
from errors import require
from generation import generator
from generation.continuation import Continuation

CONTROLS = ('repetition_penalty', 'no_repeat_ngram', 'logit_bias')  # those of the text, not of a draw
IMPOSSIBLE = -1e20  # a token that is ruled out has a lower score


def search(gpt2, context, *, beams, length, stop=(), **controls):
    """The best `beams` Continuations, best first, by beam search (Sutskever et al. 2014, section 3.2).

    A Continuation ends with a stop text or has `length` tokens. Its score is the mean log-probability of its
    tokens, after the controls (of CONTROLS). The search ends when no beam has a better score than the worst
    of `beams` Continuations that have ended. gpt2: a Generator. context: a list of ids. Raises InputError for
    values out of range, and where context and continuation exceed n_ctx.
    """
    require(controls.keys() <= {*CONTROLS}, f'beam search takes no {", ".join(controls.keys() - CONTROLS)}')
    sample.check_controls(length=length, n_vocab=gpt2.hparams.n_vocab, **controls)
    require(beams > 0, f'beams must be 1 or more, not {beams}')
    require(len(context) and {*context} <= {*range(gpt2.hparams.n_vocab)},
            f'a context must be a list of ids below {gpt2.hparams.n_vocab}')
    check_length(len(context), length, gpt2.hparams.n_ctx)
    gpt2.active_stream = None
    rows, scores, ended = [Continuation(gpt2.enc, stop)], np.zeros(1, np.float32), []
    controls = {**generator.CONTROLS, **controls}
    for n in range(1, length + 1):
        tokens = np.array([[*context, *row.tokens] for row in rows], np.int32)
        beam, n_candidates = [], 2 * beams
        while len(beam) < beams:
            controls['top_k'] = n_candidates
            values = gpt2.inputs(tokens, controls, np.zeros(len(rows)), 'likeliest')
            results = (gpt2.prefill(tokens, np.array([len(context)]), values) if n == 1 else
                       gpt2.run(tokens[:, -1:], values, gpt2.n_past + 1, T=1))
            candidates = extensions(rows, scores, n_candidates, *results)
            beam = [candidate for candidate in candidates if not candidate[2].finished][:beams]
            if n_candidates >= gpt2.hparams.n_vocab:
                break
            if len(beam) < beams:  # many tokens end a text: again, with more
                n_candidates, gpt2.n_past = 8 * n_candidates, gpt2.n_past - 1
        ended += [(score / n, row) for score, _, row in candidates[:beams] if row.finished or n == length]
        ended = sorted(ended, key=lambda pair: -pair[0])[:beams]
        if not beam or (len(ended) == beams and beam[0][0] / n <= ended[-1][0]):
            break
        scores, parents, rows = zip(*beam, strict=True)
        gpt2.select_rows(np.array(parents))
    for _, row in ended:
        row.close()
    return [row for _, row in ended]


def check_length(n_tokens, length, n_ctx, place=''):  # or raises InputError, which names the place
    require(n_tokens + length - 1 <= n_ctx,  # the last token is not fed back
            f'{place}a prompt of {n_tokens} tokens and {length} more exceed n_ctx, {n_ctx}, where beams end; '
            'give a smaller length')


def extensions(rows, scores, n, added, tokens, logprobs):  # [B], [B] and three of [B, N]
    """The n likeliest rows with one token more, as [(score, place of the row, Continuation)], falling."""
    scores, extended = np.array(scores)[:, None] + added, []
    for place in np.argsort(-scores, axis=None, kind='stable')[:n]:
        parent, i = np.unravel_index(place, scores.shape)
        if scores[parent, i] > IMPOSSIBLE:
            row = rows[parent].copy()
            row.add(tokens[parent, i], logprobs[parent, i])
            extended.append((scores[parent, i], parent, row))
    return extended
