// The three ways of following. A file is looked at, not watched: that works on every file system and through every mount.
// Descriptors are closed in forked children, so that a pipe's writer hears of its reader's end.
#include "tail.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "../support/fail.h"
#include "../support/fork_guard.h"

namespace gft::watch {
namespace {

constexpr size_t kPiece = 256 << 10;
constexpr size_t kRecord = 16 << 10;  // no record of the kernel's device is longer
constexpr size_t kBefore = 64;

ssize_t read_again(Tail::ReadCall call, int descriptor, std::string &into) {
  ssize_t got;
  do got = call(descriptor, into.data(), into.size());
  while (got < 0 && errno == EINTR);
  return got;
}

}  // namespace

Tail::Tail(std::string path, bool from_start, ReadCall call)
    : path_(std::move(path)), call_(call ? call : ::read), made_in_((guard_forks(), fork_generation())) {
  buffer_.resize(kPiece);
  bool device = path_.starts_with("/dev/") && !path_.starts_with("/dev/shm/") && !path_.starts_with("/dev/fd/");
  if (!open_path()) {
    if (errno == ENOENT && !device) return;
    if (errno == ENOENT)
      fail(GFT_NOT_FOUND, "there is no %s here; mount it into the container (docker: --device /dev/kmsg), or name a log file",
           path_.c_str());
    fail(GFT_IO,
         "cannot open the log %s: %s; give this process CAP_SYSLOG (docker: --cap-add SYSLOG --device /dev/kmsg), or "
         "name a log that it may read",
         path_.c_str(), strerror(errno));
  }
  if (kind_ == Kind::records) {
    old_ = from_start;
    lseek(descriptor_, 0, from_start ? SEEK_SET : SEEK_END);
  } else if (kind_ == Kind::file) {
    begin_file(from_start);
  }
}

Tail::~Tail() {
  if (descriptor_ >= 0) close_guarded(descriptor_, made_in_);
}

// False with errno when it cannot be opened.
bool Tail::open_path() {
  int opened = open_guarded(path_.c_str(), O_RDONLY | O_NONBLOCK | O_NOCTTY);
  struct stat status;
  if (opened >= 0 && (fstat(opened, &status) != 0 || S_ISDIR(status.st_mode))) {
    close_guarded(opened, made_in_);
    errno = EISDIR;
    return false;
  }
  if (opened < 0) return false;
  descriptor_ = opened;
  // Files that the kernel makes up (trace_pipe) call themselves regular, but can be waited for like a pipe.
  struct statfs system;
  bool made_up = fstatfs(opened, &system) == 0 && (system.f_type == PROC_SUPER_MAGIC || system.f_type == TRACEFS_MAGIC ||
                                                   system.f_type == DEBUGFS_MAGIC);
  if (S_ISCHR(status.st_mode) || call_ != ::read)
    kind_ = Kind::records;
  else
    kind_ = S_ISREG(status.st_mode) && !made_up ? Kind::file : Kind::pipe;
  poll_ = kind_ != Kind::file;
  return true;
}

Tail::Piece Tail::next() {
  if (fork_generation() != made_in_) return {};
  if (descriptor_ < 0) {
    if (!open_path()) return {};
    if (kind_ == Kind::file) begin_file(true), old_ = false, old_until_ = 0;
  }
  if (kind_ == Kind::records) return next_record();
  return kind_ == Kind::pipe ? next_of_pipe() : next_of_file();
}

Tail::Piece Tail::next_record() {
  buffer_.resize(kRecord);
  ssize_t got = read_again(call_, descriptor_, buffer_);
  if (got > 0) return {Piece::record, std::string_view(buffer_).substr(0, static_cast<size_t>(got)), ""};
  if (got < 0 && errno == EPIPE) return {Piece::gap, {}, "overwritten"};
  if (got < 0 && errno != EAGAIN) poll_ = false;  // it would be ready for ever
  old_ = false;
  return {};
}

Tail::Piece Tail::next_of_pipe() {
  ssize_t got = read_again(call_, descriptor_, buffer_);
  if (got > 0) {
    poll_ = open_end_ = true;
    return {Piece::bytes, std::string_view(buffer_).substr(0, static_cast<size_t>(got)), ""};
  }
  if (got < 0 && errno == EAGAIN) {
    poll_ = true;
    return {};
  }
  // No writer has it open: polling would not wait. Another may come.
  poll_ = false;
  if (!open_end_) return {};
  open_end_ = false;
  return {Piece::cut, {}, "closed"};
}

void Tail::begin_file(bool from_start) {
  char first[64];
  ssize_t got = pread(descriptor_, first, sizeof first, 0);
  head_.assign(first, static_cast<size_t>(std::max<ssize_t>(got, 0)));
  struct stat status;
  off_t size = fstat(descriptor_, &status) == 0 ? status.st_size : 0;
  at_ = 0;
  before_.clear();
  replaced_ = 0;
  old_ = from_start && size > 0;
  old_until_ = size;
  if (from_start || !size) return;
  // A line that is being written right now belongs to what is to come.
  std::string tail(kRecord, '\0');
  off_t back = std::min<off_t>(size, static_cast<off_t>(tail.size()));
  got = pread(descriptor_, tail.data(), static_cast<size_t>(back), size - back);
  size_t newline = got > 0 ? tail.rfind('\n', static_cast<size_t>(got) - 1) : tail.npos;
  at_ = newline == tail.npos ? (back == size ? 0 : size) : size - back + static_cast<off_t>(newline) + 1;
}

void Tail::begin_again() {
  at_ = 0;
  old_until_ = 0;
  old_ = false;
  before_.clear();
}

void Tail::remember(std::string_view bytes) {
  if (bytes.size() >= kBefore) before_.clear();
  before_.append(bytes.substr(bytes.size() - std::min(bytes.size(), kBefore)));
  if (before_.size() > kBefore) before_.erase(0, before_.size() - kBefore);
}

bool Tail::was_replaced() const {
  struct stat named, ours;
  if (stat(path_.c_str(), &named) != 0 || fstat(descriptor_, &ours) != 0) return false;
  return S_ISREG(named.st_mode) && (named.st_dev != ours.st_dev || named.st_ino != ours.st_ino);
}

Tail::Piece Tail::next_of_file() {
  struct stat status;
  if (fstat(descriptor_, &status) != 0) return {};
  if (status.st_size < at_) {
    begin_again();
    return {Piece::gap, {}, "truncated"};
  }
  if (status.st_size > at_) {
    replaced_ = 0;
    if (!before_.empty()) {
      char again[kBefore];
      auto wanted = static_cast<ssize_t>(before_.size());
      if (pread(descriptor_, again, before_.size(), at_ - wanted) != wanted || before_.compare(0, before_.npos, again, before_.size())) {
        begin_again();
        return {Piece::gap, {}, "rewritten"};
      }
    }
    size_t most = buffer_.size();
    old_ = at_ < old_until_;
    if (old_) most = std::min<size_t>(most, static_cast<size_t>(old_until_ - at_));
    ssize_t got = pread(descriptor_, buffer_.data(), most, at_);
    if (got <= 0) return {};
    std::string_view read = std::string_view(buffer_).substr(0, static_cast<size_t>(got));
    at_ += got;
    remember(read);
    return {Piece::bytes, read, ""};
  }
  old_ = false;
  // The old file gets one more look: its writer may have had it open when the new one came.
  if (!was_replaced() || replaced_++ == 0) return {};
  close_guarded(descriptor_, made_in_);
  descriptor_ = -1;
  if (open_path() && kind_ == Kind::file) begin_file(true), old_ = false, old_until_ = 0;
  return {Piece::cut, {}, "rotated"};
}

}  // namespace gft::watch
