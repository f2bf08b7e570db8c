#!/usr/bin/env bash
# Builds Horovod against the TensorFlow of the python3 on the PATH and installs it there; `make horovod` calls this.
# The built wheel is kept, so that the next time takes seconds. Environment:
#   MPI=0                         build without MPI: Gloo alone
#   HOROVOD_GPU_OPERATIONS=NCCL   build with NCCL, by CUDA's nvcc and for the NCCL among TensorFlow's own packages
#   HOROVOD_…                     Horovod's other variables count too, as HOROVOD_CUDA_HOME where there are several CUDAs
set -euo pipefail
cd "$(dirname "$0")"
version=0.28.1

pip() { python3 -m pip --disable-pip-version-check "$@"; }
fail() { printf '%s\n' "$2" >&2; exit "$1"; }

missing=() packages=()
need() {  # what, the Debian package that has it, and the command that finds it
    "${@:3}" > /dev/null 2>&1 || { missing+=("$1"); packages+=("$2"); }
}
compiles() { echo "#include <$1>" | "${CXX:-c++}" -fsyntax-only -xc++ -; }
need "a C++ compiler (${CXX:-c++})" g++ command -v "${CXX:-c++}"
need make make command -v make
need highwayhash/sip_hash.h libhighwayhash-dev compiles highwayhash/sip_hash.h
need farmhash.h libfarmhash-dev compiles farmhash.h
case ${MPI:=1} in
    1)  need mpicc libopenmpi-dev command -v mpicc
        need mpirun openmpi-bin command -v mpirun
        without='; without MPI, for Gloo alone: make horovod MPI=0' ;;
    0)  without= ;;
    *)  fail 2 "MPI must be 1 (MPI and Gloo) or 0 (Gloo alone), not '$MPI'" ;;
esac
if ((${#missing[@]})); then
    printf -v names '%s, ' "${missing[@]}"
    fail 2 "Horovod cannot be built without ${names%, }: apt-get install ${packages[*]}$without"
fi
tensorflow=$(pip list --format=freeze | sed -En 's/^(tensorflow([-_]cpu)?)==/\1-/p')
test "$tensorflow" || fail 2 "Horovod is built against TensorFlow, and $(command -v python3) has none: make install"

nccl=
if [ "${HOROVOD_GPU_OPERATIONS:-}" = NCCL ]; then
    # nvcc may be a link or a wrapper, which are elsewhere than CUDA's headers: nvcc itself knows where it is.
    : "${HOROVOD_CUDA_HOME:=$(nvcc --dryrun -x cu /dev/null 2>&1 | sed -n 's/^#\$ TOP=//p')}"
    test "$HOROVOD_CUDA_HOME" || fail 2 "NCCL needs CUDA's compiler, and there is no nvcc on the PATH: install NVIDIA's \
cuda-toolkit, of a version that your GPU's driver supports"
    nccl=$(python3 -c 'import nvidia.nccl; print(*nvidia.nccl.__path__)' 2> /dev/null) || fail 2 "NCCL is not among \
the packages of $(command -v python3): python3 -m pip install 'tensorflow[and-cuda]'"
    export HOROVOD_CUDA_HOME
fi

unset HOROVOD_WITHOUT_TENSORFLOW HOROVOD_WITHOUT_GLOO HOROVOD_WITH_MPI HOROVOD_WITHOUT_MPI
export HOROVOD_WITH_TENSORFLOW=1 HOROVOD_WITH_GLOO=1 HOROVOD_WITHOUT_PYTORCH=1 HOROVOD_WITHOUT_MXNET=1
if ((MPI)); then export HOROVOD_WITH_MPI=1; else export HOROVOD_WITHOUT_MPI=1; fi

# A wheel is good for the TensorFlow, Python, compiler, MPI, processor and options of its build, and for this recipe.
key=$({
    env | grep '^HOROVOD_' | sort
    python3 -VV; uname -m; "${CXX:-c++}" --version
    if ((MPI)); then mpirun --version; fi
    if [ "$nccl" ]; then "$HOROVOD_CUDA_HOME/bin/nvcc" --version; cat "$nccl/include/nccl.h"; fi
    find horovod.sh horovod-build.txt include -type f | sort | xargs cat
} | sha256sum | cut -c1-12)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/gpt-2/horovod-$version-$tensorflow-$key

if ! test -d "$cache"; then
    echo "Building Horovod $version against ${tensorflow/-2/ 2}: some minutes, once" >&2
    mkdir -p "$(dirname "$cache")"
    work=$(mktemp -d "$cache.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    # What only the build needs stays out of the environment.
    pip install --quiet --target "$work/tools" --requirement horovod-build.txt
    if [ "$nccl" ]; then
        # The package has no libnccl.so to link to, and it is to be found where it is beside whichever Horovod.
        ln -s "$nccl"/lib/libnccl.so.2 "$work/libnccl.so"
        export HOROVOD_NCCL_INCLUDE=$nccl/include HOROVOD_NCCL_LIB=$work HOROVOD_NCCL_LINK=SHARED
        export LDFLAGS="${LDFLAGS:-} -Wl,-rpath,\$ORIGIN/../../nvidia/nccl/lib"
    fi
    # pip's own cache is not used: it knows nothing of TensorFlow's version and of options.
    MAKEFLAGS=-j$(nproc) CPATH=$PWD/include${CPATH:+:$CPATH} TMPDIR=$work \
        PYTHONPATH=$work/tools PATH=$work/tools/bin:$PATH \
        pip wheel "horovod==$version" --no-binary horovod --no-cache-dir --no-deps --no-build-isolation \
        --wheel-dir "$work/wheel" > "$work/log" 2>&1 || {
        tail -n 60 "$work/log" >&2
        mv "$work/log" "$cache.log"
        fail 1 "Horovod could not be built: $cache.log"
    }
    # Renamed, so that what is in the cache is whole. Where another build was first, its wheel serves.
    mv -T "$work/wheel" "$cache" 2> /dev/null || test -d "$cache"
fi

pip install --quiet --no-deps --force-reinstall "$cache"/*.whl
pip install --quiet "$cache"/*.whl  # what it requires, where that is missing
TF_CPP_MIN_LOG_LEVEL=3 python3 - 2> /dev/null << 'END' || fail 1 "Horovod was installed and cannot be imported: python3 -c 'import horovod.tensorflow'"
import horovod
import horovod.tensorflow as hvd

built = {'MPI': hvd.mpi_built(), 'Gloo': hvd.gloo_built(), 'NCCL': hvd.nccl_built()}
print(f'Horovod {horovod.__version__} with', ' and '.join(name for name in built if built[name]))
END
