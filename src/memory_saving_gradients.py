"""Gradients that keep only checkpoints of the forward pass, and compute the other activations again.

Memory falls to the checkpoints (one tensor a layer) and the activations between two of them, at the price of
a second forward pass (Chen et al. 2016, "Training deep nets with sublinear memory cost"). The operations
between two checkpoints are copied, fed by a copy of the first that waits for the gradient of the second.
"""
import tensorflow.compat.v1 as tf

from errors import require


def gradients(ys, xs, grad_ys=None, checkpoints='collection', recompute=True):
    """As tf.gradients(ys, xs, grad_ys), to rounding, in less memory.

    ys: a tensor or a list of them. xs: a list of variables or tensors.
    checkpoints: tensors, one after another on every way from xs to ys (xs may also enter between them), or
        'collection': those of the graph's collection 'checkpoints' that ys depends on.
    recompute: False to keep all activations, so that memory is saved by the order of the work alone.
    Returns a dense tensor for each of xs, or None. Raises InputError where there is no checkpoint.
    """
    ys = list(ys) if isinstance(ys, (list, tuple)) else [ys]
    if isinstance(checkpoints, str):
        require(checkpoints == 'collection',
                f"checkpoints must be 'collection' or tensors, not {checkpoints!r}")
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
        parts, upstream = backward([end], xs, [upstream], start)
        totals = [add(total, part) for total, part in zip(totals, parts, strict=True)]
    parts = tf.gradients([points[0]], xs, [upstream])
    return [add(total, part) for total, part in zip(totals, parts, strict=True)]


def backward(ys, xs, grad_ys, start):
    """Gradients with respect to xs by the ways that do not pass `start`, and with respect to `start`."""
    *parts, upstream = tf.gradients(ys, [*xs, start], grad_ys, stop_gradients=[start])
    parts = [add(part, None) for part in parts]
    # The way back waits for these: else what they need of this segment would be kept longer.
    with tf.control_dependencies([part for part in parts if part is not None]):
        return parts, tf.identity(upstream)


def add(a, b):  # gradients, dense, sparse or None -> their sum, dense or None
    if isinstance(b, tf.IndexedSlices):
        a, b = b, a
    if isinstance(a, tf.IndexedSlices) and isinstance(b, tf.Tensor):
        return tf.tensor_scatter_nd_add(b, a.indices[:, None], a.values)
    present = [tf.convert_to_tensor(gradient) for gradient in (a, b) if gradient is not None]
    return tf.add_n(present) if len(present) == 2 else present[0] if present else None


def ancestors(operations, until=()):
    """The operations and all that their results depend on, without going past those in `until`."""
    reached, todo = set(), list(operations)
    while todo:
        operation = todo.pop()
        if operation not in reached and operation not in until:
            reached.add(operation)
            todo += [tensor.op for tensor in operation.inputs] + list(operation.control_inputs)
    return reached


def in_order(points):  # each depends only on those before it
    operations = {point.op for point in points}
    return sorted(points, key=lambda point: len(operations & ancestors([point.op])))


def copy_segment(start, end, new_start):
    """`end` computed again from new_start. What does not depend on start is shared, not copied."""
    before = ancestors([end.op], until={start.op})
    inside, todo = set(), [start.op]
    while todo:
        operation = todo.pop()
        users = {user for output in operation.outputs for user in output.consumers()}
        new = (users & before) - inside
        inside |= new
        todo += new
    # Without its version the copy, and from then on the whole graph, would count as an old TensorFlow's.
    definition, inputs = tf.GraphDef(versions=start.graph.graph_def_versions), {start.name: new_start}
    # Sorted, for the same graph, and the same rounding, in every process.
    for operation in sorted(inside, key=lambda operation: operation.name):
        node = definition.node.add()
        node.CopyFrom(operation.node_def)
        node.attr.pop('_class', None)  # colocation with operations that are not in the copy
        for tensor in operation.inputs:
            if tensor.op not in inside and tensor is not start:
                inputs[tensor.name] = tensor
        for other in operation.control_inputs:
            if other not in inside:
                inputs[f'^{other.name}'] = other
    return tf.import_graph_def(definition, inputs, [end.name], name=f'recomputed/{end.op.name}')[0]
