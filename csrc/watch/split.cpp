// Lines without copying where a piece holds them whole; a journal by a state for each place where a piece may end.
// Both look for newlines with memchr and keep at most kMost bytes of anything.
#include "split.h"

#include <algorithm>
#include <cstring>

#include "text.h"

namespace gft::watch {
namespace {

void keep(std::string &held, std::string_view bytes) {
  held.append(bytes.substr(0, kMost - std::min(kMost, held.size())));
}

}  // namespace

void Lines::feed(std::string_view bytes) {
  while (!bytes.empty()) {
    size_t end = bytes.find('\n');
    std::string_view part = bytes.substr(0, end);
    bytes.remove_prefix(end == bytes.npos ? bytes.size() : end + 1);
    if (end == part.npos) {
      if (skipping_) return;
      keep(held_, part);
      if (held_.size() < kMost) return;
      each_(held_, false);
      held_.clear();
      skipping_ = true;
      return;
    }
    if (skipping_) {
      skipping_ = false;
    } else if (held_.empty()) {
      each_(part.substr(0, kMost), part.size() <= kMost);
    } else {
      bool whole = held_.size() + part.size() <= kMost;
      keep(held_, part);
      each_(held_, whole);
      held_.clear();
    }
  }
}

void Lines::cut() {
  if (!held_.empty()) each_(held_, false);
  held_.clear();
  skipping_ = false;
}

void Journal::feed(std::string_view bytes) {
  while (!bytes.empty()) {
    if (at_ == At::line) {
      size_t end = bytes.find('\n');
      keep(held_, bytes.substr(0, end));
      if (end == bytes.npos) return;
      bytes.remove_prefix(end + 1);
      line();
    } else if (at_ == At::length) {
      size_t n = std::min(bytes.size(), 8 - held_.size());
      held_.append(bytes.substr(0, n));
      bytes.remove_prefix(n);
      if (held_.size() < 8) return;
      left_ = 0;
      for (int i = 8; i-- > 0;) left_ = left_ << 8 | static_cast<unsigned char>(held_[static_cast<size_t>(i)]);
      held_.clear();
      at_ = At::data;
      // No journal has such a field: the stream is no journal or was cut. Look for the next line.
      if (left_ > (uint64_t{1} << 32)) at_ = At::line;
    } else if (at_ == At::data) {
      size_t n = static_cast<size_t>(std::min<uint64_t>(bytes.size(), left_));
      keep(held_, bytes.substr(0, n));
      bytes.remove_prefix(n);
      left_ -= n;
      if (left_) return;
      field(name_, held_);
      held_.clear();
      at_ = At::after;
    } else {
      if (bytes.front() == '\n') bytes.remove_prefix(1);
      at_ = At::line;
    }
    if (at_ == At::data && !left_) {
      field(name_, {});
      at_ = At::after;
    }
  }
}

void Journal::line() {
  size_t equals = held_.find('=');
  if (held_.empty()) {
    end_entry();
  } else if (equals != held_.npos) {
    field(std::string_view(held_).substr(0, equals), std::string_view(held_).substr(equals + 1));
  } else {
    name_ = held_;
    at_ = At::length;
  }
  held_.clear();
}

void Journal::field(std::string_view name, std::string_view value) {
  any_ = true;
  auto number = [&value](int64_t &out) {
    Cursor at{value};
    int64_t read;
    if (at.number(read) && at.done()) out = read;
  };
  if (name == "MESSAGE") entry_.message = value;
  else if (name == "SYSLOG_IDENTIFIER") entry_.identifier = value;
  else if (name == "_TRANSPORT") entry_.transport = value;
  else if (name == "SYSLOG_FACILITY") number(entry_.facility);
  else if (name == "__REALTIME_TIMESTAMP") number(entry_.wall_us);
  else if (name == "__MONOTONIC_TIMESTAMP" && entry_.boot_us < 0) number(entry_.boot_us);
  else if (name == "_SOURCE_MONOTONIC_TIMESTAMP") number(entry_.boot_us);
  else if (name == "__SEQNUM") number(entry_.serial);
}

void Journal::end_entry() {
  if (any_ && !entry_.message.empty()) each_(entry_);
  entry_ = JournalEntry();
  any_ = false;
}

void Journal::cut() {
  end_entry();
  held_.clear();
  name_.clear();
  at_ = At::line;
}

}  // namespace gft::watch
