// Runs a fuzz target over the files of the folders named on the command line: a corpus without a fuzzer, built by any
// compiler. It ends with the number of inputs; a crash names the file, printed before it is run.
#include <filesystem>
#include <fstream>

#include "../native/programs/support.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int main(int argc, char **argv) {
  unsigned long long count = 0;
  for (int i = 1; i < argc; ++i)
    for (const auto &entry : std::filesystem::recursive_directory_iterator(argv[i])) {
      if (!entry.is_regular_file()) continue;
      std::ifstream file(entry.path(), std::ios::binary);
      std::vector<char> bytes((std::istreambuf_iterator<char>(file)), {});
      std::fprintf(stderr, "%s\r", entry.path().filename().c_str());
      LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t *>(bytes.data()), bytes.size());
      ++count;
    }
  const char *program = std::strrchr(argv[0], '/');
  std::printf("%s: %llu inputs, no crash\n", program ? program + 1 : argv[0], count);
  return count ? 0 : 1;
}
