// Page-aligned staging memory with a budget: what limits how far appends and reads may run ahead of the disk.
// Buffers are kept for the next user of their size, because fresh memory costs a fault per page.
#pragma once

#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "log.h"

namespace gft::disk {

class Buffers;

// Gives its memory back when it goes; keeps the pool alive until then.
class Buffer {
 public:
  Buffer() = default;
  Buffer(std::shared_ptr<Buffers> from, uint8_t *data, uint64_t bytes) : from_(std::move(from)), data_(data), bytes_(bytes) {}
  Buffer(Buffer &&other) noexcept;
  Buffer &operator=(Buffer &&other) noexcept;
  ~Buffer();
  uint8_t *data() const { return data_; }
  uint64_t bytes() const { return bytes_; }
  explicit operator bool() const { return data_ != nullptr; }

 private:
  std::shared_ptr<Buffers> from_;
  uint8_t *data_ = nullptr;
  uint64_t bytes_ = 0;
};

class Buffers : public std::enable_shared_from_this<Buffers> {
 public:
  explicit Buffers(uint64_t budget) : budget_(budget) {}
  ~Buffers();
  // `bytes` rounded up to pages; empty when there was no room until `deadline`. One buffer larger than the whole budget
  // is given out when nothing else is.
  Buffer take(uint64_t bytes, Clock::time_point deadline);

 private:
  friend class Buffer;
  void put_back(uint8_t *data, uint64_t bytes) noexcept;
  void free_kept(uint64_t until) noexcept;

  const uint64_t budget_;
  std::mutex mutex_;
  std::condition_variable room_;
  uint64_t used_ = 0, kept_bytes_ = 0;
  std::multimap<uint64_t, uint8_t *> kept_;
};

}  // namespace gft::disk
