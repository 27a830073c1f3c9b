// The table of namespace records: appended under the administration lock, counted by one release-store.
// A record that this process has read and checked once is remembered, so later damage to the table cannot change its
// meaning.
#include <algorithm>
#include <cstring>

#include "../digest/crc32c.h"
#include "core.h"

namespace gft {
namespace {

uint32_t record_crc(uint32_t bytes, const void *record) { return crc32c(record, bytes, crc32c(&bytes, sizeof bytes)); }

}  // namespace

uint32_t Core::namespace_count() const {
  uint64_t count = Word(control()->namespaces).load(std::memory_order_acquire);
  if (count > kNamespaces)
    fail(GFT_DAMAGED, "arena %s is damaged: it claims %llu namespaces, at most %u fit; remove it", path(),
         (unsigned long long)count, kNamespaces);
  return static_cast<uint32_t>(count);
}

std::vector<uint8_t> Core::namespace_bytes(uint32_t index) const {
  check_alive();
  if (index >= namespace_count())
    fail(GFT_INVALID, "arena %s has no namespace %u, only %u; add it first", path(), index, namespace_count());
  NamespaceRecord copy;
  std::memcpy(&copy, namespace_record(index), sizeof copy);
  if (copy.bytes == 0 || copy.bytes > kNamespaceBytes || copy.crc != record_crc(copy.bytes, copy.record))
    fail(GFT_DAMAGED, "arena %s is damaged: the checksum of namespace %u does not hold; remove it", path(), index);
  return {copy.record, copy.record + copy.bytes};
}

Namespace Core::name_space(uint32_t index) {
  std::lock_guard lock(namespace_mutex_);
  for (const Namespace &known : known_namespaces_)
    if (known.index == index) return known;
  auto bytes = namespace_bytes(index);
  known_namespaces_.push_back({index, digest().of(bytes.data(), bytes.size())});
  return known_namespaces_.back();
}

bool Core::names_its_namespace(const SlotHeader &header) {
  try {
    return name_space(header.name_space).id == std::to_array(header.name_space_id);
  } catch (const Fail &) {
    return false;  // no such record, or a damaged one
  }
}

uint32_t Core::add_namespace(const void *record, size_t bytes) {
  if (bytes == 0 || bytes > kNamespaceBytes)
    fail(GFT_INVALID, "a namespace record of %zu bytes; it must have between 1 and %u", bytes, kNamespaceBytes);
  auto find = [&]() -> int64_t {
    uint32_t count = namespace_count();
    for (uint32_t i = 0; i < count; ++i) {
      auto there = namespace_bytes(i);
      if (there.size() == bytes && std::memcmp(there.data(), record, bytes) == 0) return i;
    }
    return -1;
  };
  check_alive();
  if (int64_t there = find(); there >= 0) return static_cast<uint32_t>(there);
  check_writable();
  AdminLock lock(*this);
  if (int64_t there = find(); there >= 0) return static_cast<uint32_t>(there);
  uint32_t index = namespace_count();
  if (index == kNamespaces)
    fail(GFT_FULL, "arena %s has %u namespaces, all there is room for; use a new arena", path(), kNamespaces);
  NamespaceRecord *to = namespace_record(index);
  to->bytes = static_cast<uint32_t>(bytes);
  to->crc = record_crc(to->bytes, record);
  std::memcpy(to->record, record, bytes);
  Word(control()->namespaces).store(index + 1, std::memory_order_release);
  return index;
}

}  // namespace gft
