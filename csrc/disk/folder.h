// The files of a log's folder: their names, and opening them without following links or trusting strangers.
// Everything is done by path inside one folder whose owner and mode were checked.
#pragma once

#include <string>
#include <vector>

#include "format.h"
#include "log.h"

namespace gft::disk {

std::string super_name(uint64_t term, char copy);
std::string segment_name(uint64_t segment);  // term in the upper half, number in the lower
std::string summary_name(uint64_t segment);

// One descriptor, closed at the end; a forked child has none.
class File {
 public:
  File() = default;
  File(int descriptor, uint64_t made_in) : descriptor_(descriptor), made_in_(made_in) {}
  File(File &&other) noexcept;
  File &operator=(File &&other) noexcept;
  ~File();
  int get() const { return descriptor_; }
  explicit operator bool() const { return descriptor_ >= 0; }
  uint64_t size() const;  // 0 when it cannot be asked

 private:
  int descriptor_ = -1;
  uint64_t made_in_ = 0;
};

class Folder {
 public:
  // Throws GFT_NOT_FOUND, GFT_IO, GFT_INVALID (not a folder of ours, open to others).
  Folder(std::string path, bool make, bool read_only);

  // Throws GFT_NOT_FOUND, GFT_EXISTS, GFT_NO_SPACE, GFT_READ_ONLY, GFT_IO, GFT_INVALID (not a plain file of ours).
  File open(const std::string &name, int flags) const;
  bool exists(const std::string &name) const;  // true when it cannot be told
  bool is(const std::string &name, const File &file) const;  // whether that is what lies there now
  void remove(const std::string &name) const noexcept;
  uint64_t free_bytes() const noexcept;  // that this user may take from the file system; a great many when it cannot be asked
  void sync() const;
  std::vector<std::string> names() const;
  std::string path_of(const std::string &name) const { return path + "/" + name; }

  const std::string path;

 private:
  bool read_only_;
};

// Small files, whole. `read_small` throws as open does and gives at most `most` bytes.
std::vector<uint8_t> read_small(const File &file, const std::string &name, uint64_t most);
void write_at(const File &file, const std::string &name, const void *data, size_t bytes, uint64_t offset);
void sync_data(const File &file, const std::string &name);

// The status for an errno of this folder, and its text.
gft_status status_of(int error);
[[noreturn]] void fail_io(const char *what, const std::string &path, int error);

}  // namespace gft::disk
