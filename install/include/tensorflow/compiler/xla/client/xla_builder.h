// TensorFlow moved this header to xla/hlo/builder and dropped xla::StatusOr; Horovod 0.28.1 still asks for both.
#pragma once

#include "absl/status/statusor.h"
#include "xla/hlo/builder/xla_builder.h"

namespace xla {
template <typename T>
using StatusOr = absl::StatusOr<T>;
}
