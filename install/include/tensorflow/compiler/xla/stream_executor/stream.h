// TensorFlow moved this header to xla/stream_executor, and exports AsGpuStreamValue no longer: Horovod 0.28.1 asks for the
// first and declares the second, with its own name for CUDA's streams.
#pragma once

#include "xla/stream_executor/stream.h"

namespace stream_executor::gpu {
inline GpuStreamHandle AsGpuStreamValue(Stream* stream) {
  return static_cast<GpuStreamHandle>(stream->platform_specific_handle().stream);
}
}  // namespace stream_executor::gpu
