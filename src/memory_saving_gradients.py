"""Gradients that keep only checkpoints of the forward pass, and compute the rest again when its turn comes.

Memory falls from all activations to the checkpoints (one tensor a layer) and the activations of one segment between
two of them; the price is a second forward pass (Chen et al. 2016, "Training deep nets with sublinear memory cost").

The operations between two checkpoints are copied into the graph, fed by a copy of the first one that waits for the
gradient of the second; nothing of TensorFlow is patched.
"""
import tensorflow.compat.v1 as tf

from errors import require


def gradients(ys, xs, grad_ys=None, checkpoints='collection', recompute=True):
    """As tf.gradients(ys, xs, grad_ys), to rounding, in less memory.

    ys: a tensor or a list of them. xs: a list of variables or tensors.
    checkpoints: tensors that lie one after another on every way from xs to ys (xs may also enter anywhere between), or
        'collection': those of the graph's collection 'checkpoints' that ys depends on.
    recompute: False to keep all activations, so that memory is saved by the order of the work alone.
    Returns a dense tensor for each of xs, or None. Raises InputError where there is no checkpoint.
    """
    ys = list(ys) if isinstance(ys, (list, tuple)) else [ys]
    if isinstance(checkpoints, str):
        require(checkpoints == 'collection', f"checkpoints must be 'collection' or tensors, not {checkpoints!r}")
        checkpoints = tf.get_collection('checkpoints')
    needed = ancestors([y.op for y in ys])
    points = in_order([point for point in checkpoints if point.op in needed])
    require(points, 'no checkpoint lies before ys: add tensors to the collection, or use tf.gradients')

    # The last segment is not computed again: its gradient is the first that is asked for.
    totals, upstream = backward(ys, xs, grad_ys, points[-1])
    for i in reversed(range(len(points) - 1)):
        start, end = points[i], points[i + 1]
        if recompute:
            with tf.control_dependencies([upstream]):
                start = tf.identity(points[i])
            end = copy_segment(points[i], points[i + 1], start)
        found, upstream = backward([end], xs, [upstream], start)
        totals = [add(*pair) for pair in zip(totals, found, strict=True)]
    found = tf.gradients([points[0]], xs, [upstream])
    return [add(*pair) for pair in zip(totals, found, strict=True)]


def backward(ys, xs, grad_ys, start):
    """Gradients with respect to xs by the ways that do not pass `start`, and with respect to `start`."""
    *found, upstream = tf.gradients(ys, [*xs, start], grad_ys, stop_gradients=[start])
    found = [add(each, None) for each in found]
    # The way back goes on once these are there: else what they need of this segment would be kept longer.
    with tf.control_dependencies([each for each in found if each is not None]):
        return found, tf.identity(upstream)


def add(a, b):
    """The sum of two gradients, each dense, sparse or None; dense or None."""
    present = [each for each in (a, b) if each is not None]
    dense = [each for each in present if not isinstance(each, tf.IndexedSlices)]
    sparse = [each for each in present if isinstance(each, tf.IndexedSlices)]
    if len(dense) == len(sparse) == 1:
        return tf.tensor_scatter_nd_add(dense[0], sparse[0].indices[:, None], sparse[0].values)
    present = [tf.convert_to_tensor(each) for each in present]
    return tf.add_n(present) if len(present) == 2 else present[0] if present else None


def ancestors(operations, until=()):
    """The operations and all that their results depend on, without going past those in `until`."""
    found, todo = set(), list(operations)
    while todo:
        operation = todo.pop()
        if operation not in found and operation not in until:
            found.add(operation)
            todo += [tensor.op for tensor in operation.inputs] + list(operation.control_inputs)
    return found


def in_order(points):
    """The tensors sorted so that each depends only on those before it."""
    operations = {point.op for point in points}
    return sorted(points, key=lambda point: len(operations & ancestors([point.op])))


def copy_segment(start, end, new_start):
    """`end` computed again from new_start in place of start. What does not depend on start is shared, not copied."""
    before = ancestors([end.op], until={start.op})
    inside, todo = set(), [start.op]
    while todo:
        operation = todo.pop()
        following = ({user for output in operation.outputs for user in output.consumers()} & before) - inside
        inside |= following
        todo += following
    # Without its version the copy would count as that of an old TensorFlow, and from then on the whole graph as well.
    definition, inputs = tf.GraphDef(versions=start.graph.graph_def_versions), {start.name: new_start}
    for operation in sorted(inside, key=lambda each: each.name):  # the same graph, and rounding, in every process
        node = definition.node.add()
        node.CopyFrom(operation.node_def)
        node.attr.pop('_class', None)  # colocation with operations that are not in the copy
        inputs.update({tensor.name: tensor for tensor in operation.inputs
                       if tensor.op not in inside and tensor is not start})
        inputs.update({f'^{other.name}': other for other in operation.control_inputs if other not in inside})
    return tf.import_graph_def(definition, inputs, [end.name], name=f'recomputed/{end.op.name}')[0]
