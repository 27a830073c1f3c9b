// Page-aligned staging memory with a budget: what limits how far appends and reads may run ahead of the disk.
// A budget is one region of huge pages, cut into buffers and used again: a fault for each small page costs as much as the disk.
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
  static constexpr uint64_t kUnlimited = UINT64_MAX / 2;  // each buffer is an allocation of its own then

  explicit Buffers(uint64_t budget) : budget_(budget) {}
  ~Buffers();
  // `bytes` rounded up to pages; empty when there was no room in one piece until `deadline`. One buffer larger than the
  // whole budget is given out when nothing else is. What is taken one after the other tends to lie side by side.
  Buffer take(uint64_t bytes, Clock::time_point deadline);

 private:
  friend class Buffer;
  using Holes = std::map<uint64_t, uint64_t>;  // offset in the region -> bytes; no two of them touch
  void reserve();
  Holes::iterator hole_for(uint64_t bytes);
  bool inside(const uint8_t *data) const { return region_ && data >= region_ && data < region_ + budget_; }
  void put_back(uint8_t *data, uint64_t bytes) noexcept;

  const uint64_t budget_;
  std::mutex mutex_;
  std::condition_variable room_;
  uint64_t used_ = 0;
  void *mapped_ = nullptr;      // the region and what is left over beside it
  uint8_t *region_ = nullptr;   // null before the first use, without a budget, or when it could not be had
  bool reserved_ = false;
  Holes holes_;
};

}  // namespace gft::disk
