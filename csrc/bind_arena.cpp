// Python's Arena, SlotInfo and Prefix.
// A closed Arena lets go of its handle; what was made from it keeps the mapping alive.
#include "bind.h"

namespace bind {

std::shared_ptr<gft_arena> PyArena::get() const {
  if (!handle) raise_core_error("closed", "arena " + path + " was closed; open it again");
  return handle;
}

namespace {

struct PyPrefix {
  uint64_t blocks;
  std::string reason;
  int64_t shard;
};

struct PySlotInfo {
  gft_slot_info info;
};

PyArena wrap(gft_arena *raw) {
  PyArena arena;
  arena.handle = owned(raw, gft_arena_free);
  gft_arena_info info;
  check(gft_arena_info_get(raw, &info));
  arena.path = info.path;
  arena.digest_name = info.digest_name;
  arena.geometry = info.geometry;
  arena.file_bytes = info.file_bytes;
  return arena;
}

PyArena create(const std::string &path, uint64_t slot_bytes, uint64_t slots, uint64_t ledger_bytes, bool or_open) {
  gft_geometry geometry{slot_bytes, slots, ledger_bytes};
  gft_arena *raw = nullptr;
  call([&] { return gft_arena_create(path.c_str(), &geometry, or_open, &raw); });
  return wrap(raw);
}

std::string token_of(const py::bytes &token) {
  std::string text = bytes_of(token);
  if (text.size() != 16)
    raise_core_error("invalid", "a token of " + std::to_string(text.size()) + " bytes; it must have 16, e.g. uuid4().bytes");
  return text;
}

PyPrefix usable_prefix(const PyArena &arena, uint32_t name_space, const std::vector<uint32_t> &shards,
                       const py::sequence &block_hashes, uint64_t max_epoch) {
  auto handle = arena.get();
  auto texts = bytes_of(block_hashes);
  auto hashes = views(texts);
  gft_prefix out{};
  call([&] {
    return gft_arena_usable_prefix(handle.get(), name_space, shards.data(), shards.size(), hashes.data(), hashes.size(),
                                   max_epoch, &out);
  });
  return {out.blocks, out.reason, out.shard};
}

std::vector<PySlotInfo> scan(const PyArena &arena) {
  auto handle = arena.get();
  std::vector<PySlotInfo> out;
  call([&] {
    return gft_arena_scan(
        handle.get(),
        [](void *context, const gft_slot_info *info) {
          static_cast<std::vector<PySlotInfo> *>(context)->push_back({*info});
        },
        &out);
  });
  return out;
}

std::vector<py::bytes> namespaces(const PyArena &arena) {
  auto handle = arena.get();
  uint32_t count = 0;
  call([&] { return gft_arena_namespace_count(handle.get(), &count); });
  std::vector<py::bytes> out;
  for (uint32_t i = 0; i < count; ++i) {
    char record[4096];
    size_t size = 0;
    call([&] { return gft_arena_namespace(handle.get(), i, reinterpret_cast<uint8_t *>(record), &size); });
    out.emplace_back(record, size);
  }
  return out;
}

uint64_t base_address(const PyArena &arena) {
  gft_arena_info info;
  check(gft_arena_info_get(arena.get().get(), &info));
  return info.base_address;
}

py::dict counts(const PyArena &arena) {
  auto handle = arena.get();
  gft_counts counts{};
  call([&] { return gft_arena_counts(handle.get(), &counts); });
  py::dict out;
  out["empty"] = counts.empty;
  out["writing"] = counts.writing;
  out["sealed"] = counts.sealed;
  out["held"] = counts.held;
  out["protected"] = counts.is_protected;
  out["pinned"] = counts.pinned;
  return out;
}

std::vector<std::tuple<uint64_t, uint64_t, uint64_t>> usage(const PyArena &arena) {
  auto handle = arena.get();
  gft_usage found[64];
  size_t count = 0;
  call([&] { return gft_arena_usage(handle.get(), found, &count); });
  std::vector<std::tuple<uint64_t, uint64_t, uint64_t>> out;
  for (size_t i = 0; i < count; ++i) out.emplace_back(found[i].used, found[i].quota, found[i].evicted);
  return out;
}

std::pair<uint32_t, uint32_t> caps(const PyArena &arena) {
  auto handle = arena.get();
  uint32_t protected_part = 0, pinned_part = 0;
  call([&] { return gft_arena_caps(handle.get(), &protected_part, &pinned_part); });
  return {protected_part, pinned_part};
}

PyWriter attach(const PyArena &arena, uint32_t shard, const py::bytes &token, uint32_t name_space, bool takeover) {
  auto handle = arena.get();
  std::string text = token_of(token);
  gft_writer *raw = nullptr;
  call([&] {
    return gft_arena_attach(handle.get(), shard, reinterpret_cast<const uint8_t *>(text.data()), name_space, takeover, &raw);
  });
  PyWriter writer;
  writer.handle = owned(raw, gft_writer_free);
  gft_writer_info(raw, &writer.shard, &writer.epoch, &writer.name_space);
  return writer;
}

}  // namespace

void bind_arena(py::module_ &module) {
  py::class_<PySlotInfo>(module, "SlotInfo")
      .def_property_readonly("slot", [](const PySlotInfo &s) { return s.info.slot; })
      .def_property_readonly("state", [](const PySlotInfo &s) { return s.info.state; })
      .def_property_readonly("namespace", [](const PySlotInfo &s) { return s.info.name_space; })
      .def_property_readonly("shard", [](const PySlotInfo &s) { return s.info.shard; })
      .def_property_readonly("position", [](const PySlotInfo &s) { return s.info.position; })
      .def_property_readonly("epoch", [](const PySlotInfo &s) { return s.info.epoch; })
      .def_property_readonly("generation", [](const PySlotInfo &s) { return s.info.generation; })
      .def_property_readonly("payload_bytes", [](const PySlotInfo &s) { return s.info.payload_bytes; })
      .def_property_readonly("last_used", [](const PySlotInfo &s) { return s.info.last_used; })
      .def_property_readonly("held", [](const PySlotInfo &s) { return s.info.held != 0; })
      .def_property_readonly("protected", [](const PySlotInfo &s) { return s.info.is_protected != 0; })
      .def_property_readonly("pinned_until", [](const PySlotInfo &s) { return s.info.pinned_until; })
      .def_property_readonly("block_hash", [](const PySlotInfo &s) {
        return py::bytes(reinterpret_cast<const char *>(s.info.block_hash), s.info.hash_bytes);
      });

  py::class_<PyPrefix>(module, "Prefix")
      .def_readonly("blocks", &PyPrefix::blocks)
      .def_readonly("reason", &PyPrefix::reason)
      .def_readonly("shard", &PyPrefix::shard)
      .def("__repr__", [](const PyPrefix &p) {
        return "Prefix(blocks=" + std::to_string(p.blocks) + ", reason='" + p.reason +
               "', shard=" + std::to_string(p.shard) + ")";
      });

  py::class_<PyArena>(module, "Arena")
      .def_static(
          "create",
          [](const std::string &path, uint64_t slot_bytes, uint64_t slots, uint64_t ledger_bytes) {
            return create(path, slot_bytes, slots, ledger_bytes, false);
          },
          py::arg("path"), py::kw_only(), py::arg("slot_bytes"), py::arg("slots"), py::arg("ledger_bytes"))
      .def_static(
          "open_or_create",
          [](const std::string &path, uint64_t slot_bytes, uint64_t slots, uint64_t ledger_bytes) {
            return create(path, slot_bytes, slots, ledger_bytes, true);
          },
          py::arg("path"), py::kw_only(), py::arg("slot_bytes"), py::arg("slots"), py::arg("ledger_bytes"))
      .def_static(
          "open",
          [](const std::string &path, bool read_only) {
            gft_arena *raw = nullptr;
            call([&] { return gft_arena_open(path.c_str(), read_only, &raw); });
            return wrap(raw);
          },
          py::arg("path"), py::kw_only(), py::arg("read_only") = false)
      .def("close", [](PyArena &arena) { arena.handle.reset(); })
      .def_readonly("path", &PyArena::path)
      .def_property_readonly("slot_bytes", [](const PyArena &a) { return a.geometry.slot_bytes; })
      .def_property_readonly("slots", [](const PyArena &a) { return a.geometry.slots; })
      .def_property_readonly("ledger_bytes", [](const PyArena &a) { return a.geometry.ledger_bytes; })
      .def_readonly("digest_name", &PyArena::digest_name)
      .def_readonly("file_bytes", &PyArena::file_bytes)
      .def_property_readonly("epoch",
                             [](const PyArena &arena) {
                               auto handle = arena.get();
                               uint64_t epoch = 0;
                               call([&] { return gft_arena_epoch(handle.get(), &epoch); });
                               return epoch;
                             })
      .def("counts", counts)
      .def("base_address", base_address)
      .def(
          "add_namespace",
          [](const PyArena &arena, const py::bytes &record) {
            auto handle = arena.get();
            std::string text = bytes_of(record);
            uint32_t index = 0;
            call([&] { return gft_arena_add_namespace(handle.get(), view(text), &index); });
            return index;
          },
          py::arg("record"))
      .def("namespaces", namespaces)
      .def(
          "set_caps",
          [](const PyArena &arena, uint32_t protected_part, uint32_t pinned_part) {
            auto handle = arena.get();
            call([&] { return gft_arena_set_caps(handle.get(), protected_part, pinned_part); });
          },
          py::kw_only(), py::arg("protected_part"), py::arg("pinned_part"))
      .def("caps", caps)
      .def(
          "set_quota",
          [](const PyArena &arena, uint32_t name_space, uint64_t slots) {
            auto handle = arena.get();
            call([&] { return gft_arena_set_quota(handle.get(), name_space, slots); });
          },
          py::arg("namespace"), py::arg("slots"))
      .def("usage", usage)
      .def(
          "begin_epoch",
          [](const PyArena &arena, const py::bytes &token, bool takeover, uint64_t floor) {
            auto handle = arena.get();
            std::string text = token_of(token);
            uint64_t epoch = 0;
            call([&] {
              return gft_arena_begin_epoch(handle.get(), reinterpret_cast<const uint8_t *>(text.data()), takeover, floor,
                                           &epoch);
            });
            return epoch;
          },
          py::arg("token"), py::kw_only(), py::arg("takeover") = false, py::arg("floor") = 0)
      .def("attach_writer", attach, py::kw_only(), py::arg("shard"), py::arg("token"), py::arg("namespace"),
           py::arg("takeover") = false)
      .def("usable_prefix", usable_prefix, py::kw_only(), py::arg("namespace"), py::arg("shards"), py::arg("block_hashes"),
           py::arg("max_epoch"))
      .def("scan", scan)
      .def(
          "verify",
          [](const PyArena &arena, uint64_t slot) {
            auto handle = arena.get();
            const char *out = "";
            call([&] { return gft_arena_verify(handle.get(), slot, &out); });
            return std::string(out);
          },
          py::arg("slot"));
}

}  // namespace bind
