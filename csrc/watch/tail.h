// Follows a log wherever it is kept: the kernel's device, a file that grows and is rotated, a pipe. Gives its bytes, piece by piece.
// It never waits; whoever does polls descriptor(), or looks again after kLookMs where that is -1. One thread at a time.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <string_view>

namespace gft::watch {

class Tail {
 public:
  static constexpr int kLookMs = 50;
  enum class Kind { records, file, pipe };
  struct Piece {
    enum What {
      nothing,  // wait
      bytes,    // of the stream, any piece
      record,   // one record of the kernel's device
      cut,      // what is unfinished will not be continued: another file has taken the place, or the writer closed the pipe
      gap       // something was lost, `why`: "overwritten" (device), "truncated" or "rewritten" (file)
    } what = nothing;
    std::string_view view;  // until the next call
    const char *why = "";
  };
  // For tests: how records are read.
  using ReadCall = ssize_t (*)(int, void *, size_t);

  // Opens `path`. `from_start`: what is in it already comes first, and old() is true for it; else it begins at the last line's end.
  // A file that is not there yet is waited for, but not a device: GFT_NOT_FOUND. GFT_IO with the remedy when it may not be read.
  Tail(std::string path, bool from_start, ReadCall call = nullptr);
  ~Tail();
  Tail(const Tail &) = delete;
  Tail &operator=(const Tail &) = delete;

  Piece next();
  int descriptor() const { return poll_ ? descriptor_ : -1; }
  bool old() const { return old_; }
  Kind kind() const { return kind_; }
  // The first bytes of a file, which tell its format where reading begins elsewhere.
  std::string_view head() const { return head_; }

 private:
  bool open_path();
  Piece next_record();
  Piece next_of_pipe();
  Piece next_of_file();
  void begin_file(bool from_start);
  void begin_again();
  bool was_replaced() const;
  void remember(std::string_view bytes);

  const std::string path_;
  const ReadCall call_;
  const uint64_t made_in_;
  Kind kind_ = Kind::file;
  int descriptor_ = -1;
  bool poll_ = false, old_ = false, open_end_ = false;
  off_t at_ = 0, old_until_ = 0;
  int replaced_ = 0;
  std::string head_, buffer_, before_;  // before_: the last bytes read of a file, to see that it is still the same text
};

}  // namespace gft::watch
