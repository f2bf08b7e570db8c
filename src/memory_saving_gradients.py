"""Gradients that compute the activations between checkpoints again (Chen et al. 2016)."""
import tensorflow.compat.v1 as tf

from errors import require


def gradients(ys, xs, grad_ys=None, checkpoints='collection', recompute=True):
    """As tf.gradients, to rounding, in less memory; dense tensors or None. checkpoints: tensors one after
    another on every way from xs to ys (xs may enter between, too); 'collection': the graph's 'checkpoints'.
    recompute: False: by the order of work alone."""
    ys = tf.nest.flatten(ys)
    if checkpoints == 'collection':
        checkpoints = tf.get_collection('checkpoints')
    needed = ancestors(y.op for y in ys)
    points = [point for point in checkpoints if point.op in needed]
    require(points, 'no checkpoint lies before ys: use tf.gradients')
    points.sort(key=lambda point: len(ancestors([point.op])))  # from xs to ys

    totals, upstream = backward(ys, xs, grad_ys, points[-1])
    while len(points) > 1:
        end = points.pop()
        start = points[-1]
        if recompute:
            with tf.control_dependencies([upstream]):  # once `end` has its gradient
                start = tf.identity(start)
            end = copy_segment(points[-1], end, start)
        parts, upstream = backward([end], xs, [upstream], start)
        totals = list(map(add, totals, parts))
    return list(map(add, totals, tf.gradients(points, xs, [upstream])))


def backward(ys, xs, grad_ys, start):  # -> gradients of xs by ways around start, and of start
    *parts, upstream = tf.gradients(ys, [*xs, start], grad_ys, stop_gradients=[start])
    parts = [add(None, part) for part in parts]
    # The way back waits for these, or they would keep this segment's activations.
    with tf.control_dependencies([part for part in parts if part is not None]):
        return parts, tf.identity(upstream)


def add(total, part):  # dense or None, any or None -> their sum, dense or None
    if total is None or part is None:
        return total if part is None else tf.convert_to_tensor(part)
    if isinstance(part, tf.IndexedSlices):
        return tf.tensor_scatter_nd_add(total, part.indices[:, None], part.values)
    return total + part


def ancestors(ops, until=None):  # -> these and what they need, not past `until`
    reached, todo = set(), list(ops)
    while todo:
        op = todo.pop()
        if op not in reached and op is not until:
            reached.add(op)
            todo += [*(tensor.op for tensor in op.inputs), *op.control_inputs]
    return reached


def copy_segment(start, end, new_start):  # -> `end` from new_start, by copies of what depends on start
    before, inside, todo = ancestors([end.op], until=start.op), set(), [start.op]
    while todo:
        users = {user for output in todo.pop().outputs for user in output.consumers()}
        new = (users & before) - inside
        inside |= new
        todo += new
    # Without a version, all the graph would count as an old TensorFlow's.
    copies, inputs = tf.GraphDef(versions=start.graph.graph_def_versions), {start.name: new_start}
    for op in sorted(inside, key=lambda op: op.name):  # for the same rounding everywhere
        node = copies.node.add()
        node.CopyFrom(op.node_def)
        node.attr.pop('_class', None)  # colocation with others
        inputs.update((t.name, t) for t in op.inputs if t.op not in inside and t is not start)
        inputs.update((f'^{other.name}', other) for other in op.control_inputs if other not in inside)
    return tf.import_graph_def(copies, inputs, [end.name], name=f'recomputed/{end.op.name}')[0]
