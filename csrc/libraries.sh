#!/bin/sh
# Which of the disk log's libraries the core can be built with here, as words for compiling (-D...) and linking (-l:...).
# setup.py and tests/native/core.mk both ask this file, so that what is tested is what is installed.
#   CXX=g++                                        the compiler
#   DYN_GPU_FT_BUILD_WITHOUT="uring zstd lz4"      leaves some out
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

# Static, so that the extension needs none of them where it runs. A shared object that calls into one is the question: header,
# archive and -fPIC must all be there.
try() {
  case " ${DYN_GPU_FT_BUILD_WITHOUT:-} " in *" $1 "*) return ;; esac
  printf '#include <%s>\nlong probe() { return static_cast<long>(%s); }\n' "$3" "$4" > "$folder/probe.cpp"
  # shellcheck disable=SC2086  # CXX may be several words
  if ${CXX:-g++} -std=c++20 -fPIC -shared "$folder/probe.cpp" -o "$folder/probe.so" "-l:lib$1.a" -Wl,--no-undefined 2> /dev/null
  then echo "-D$2 -l:lib$1.a"
  fi
}
try uring GFT_HAVE_URING liburing.h 'io_uring_queue_init(1, nullptr, 0)'
try zstd GFT_HAVE_ZSTD zstd.h 'ZSTD_isError(0)'
try lz4 GFT_HAVE_LZ4 lz4.h 'LZ4_compressBound(1)'
