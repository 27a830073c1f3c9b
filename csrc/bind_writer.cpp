// Python's Writer, Claim and Read, and the Ledger with its records.
// Each holds its native handle; a Claim that is dropped unsealed gives its slot back.
#include <cstring>

#include "bind.h"

namespace bind {
namespace {

struct PyClaim {
  std::shared_ptr<gft_claim> handle;
  uint64_t slot = 0, address = 0;
};

struct PyRead {
  std::shared_ptr<gft_read> handle;
  uint64_t slot = 0, address = 0, payload_bytes = 0;
};

struct PyIdentity {
  std::string name_space_id, block_hash, parent_link, link, digest;
  uint32_t shard = 0;
  uint64_t position = 0, epoch = 0, payload_bytes = 0;
};

std::string sixteen(const char *what, const py::bytes &bytes) {
  std::string text = bytes_of(bytes);
  if (text.size() != 16)
    raise_core_error("invalid", std::string(what) + " of " + std::to_string(text.size()) + " bytes; it must have 16");
  return text;
}

PyIdentity make_identity(const py::bytes &namespace_id, uint32_t shard, uint64_t position, uint64_t epoch,
                         uint64_t payload_bytes, const py::bytes &block_hash, const py::bytes &parent_link,
                         const py::bytes &link, const py::bytes &digest) {
  return {sixteen("a namespace id", namespace_id),
          bytes_of(block_hash),
          sixteen("a parent link", parent_link),
          sixteen("a link", link),
          sixteen("a digest", digest),
          shard,
          position,
          epoch,
          payload_bytes};
}

PyIdentity identity_of(const gft_identity &raw) {
  auto text = [](const uint8_t *bytes, size_t size = 16) {
    return std::string(reinterpret_cast<const char *>(bytes), size);
  };
  return {text(raw.name_space_id), text(raw.hash.data, raw.hash.size), text(raw.parent_link), text(raw.link),
          text(raw.digest),        raw.shard,                          raw.position,          raw.epoch,
          raw.payload_bytes};
}

PyIdentity identity_of_read(const PyRead &read) {
  gft_identity raw;
  gft_read_identity(read.handle.get(), &raw);
  return identity_of(raw);
}

gft_identity raw_of(const PyIdentity &identity) {
  gft_identity raw{{}, identity.shard, identity.position, identity.epoch, identity.payload_bytes, view(identity.block_hash),
                   {}, {},             {}};
  std::memcpy(raw.name_space_id, identity.name_space_id.data(), 16);
  std::memcpy(raw.parent_link, identity.parent_link.data(), 16);
  std::memcpy(raw.link, identity.link.data(), 16);
  std::memcpy(raw.digest, identity.digest.data(), 16);
  return raw;
}

py::bytes link_of(const PyIdentity &identity) {
  gft_identity raw = raw_of(identity);
  uint8_t out[16];
  check(gft_identity_link(&raw, out));
  return {reinterpret_cast<const char *>(out), sizeof out};
}

PyIdentity read_block(const PyArena &arena, uint64_t slot, const std::optional<py::buffer> &into) {
  auto handle = arena.get();
  py::buffer_info info;
  if (into) {
    info = into->request(true);
    if (info.ndim != 1 || info.itemsize != 1 || info.strides[0] != 1 ||
        static_cast<uint64_t>(info.size) != arena.geometry.slot_bytes)
      raise_core_error("invalid", "a buffer of " + std::to_string(info.size * info.itemsize) + " bytes; a payload has " +
                                      std::to_string(arena.geometry.slot_bytes));
  }
  gft_identity raw;
  uint8_t hash[64];
  call([&] { return gft_arena_read_block(handle.get(), slot, static_cast<uint8_t *>(info.ptr), hash, &raw); });
  return identity_of(raw);
}

bool seal_as(const PyClaim &claim, const PyIdentity &identity, const std::optional<py::bytes> &parent_hash, bool hold) {
  auto parent = bytes_of(parent_hash);
  gft_identity raw = raw_of(identity);
  bool present = false;
  call([&] {
    gft_status status = gft_claim_seal_as(claim.handle.get(), &raw, view(parent), hold);
    present = status == GFT_PRESENT;
    return present ? GFT_OK : status;
  });
  return !present;
}

template <std::string PyIdentity::*Field>
py::bytes bytes_field(const PyIdentity &identity) {
  return py::bytes(identity.*Field);
}

struct PyLedger {
  std::shared_ptr<gft_ledger> handle;
  std::pair<uint64_t, uint64_t> usage() const {
    uint64_t used = 0, capacity = 0;
    call([&] { return gft_ledger_usage(handle.get(), &used, &capacity); });
    return {used, capacity};
  }
};

struct PyLedgerRecords {
  std::vector<std::pair<uint32_t, std::string>> records;
  std::string end;
};

std::optional<PyClaim> claim(const PyWriter &writer, const py::bytes &block_hash,
                             const std::optional<py::bytes> &parent_hash, uint64_t position) {
  std::string hash = bytes_of(block_hash);
  auto parent = bytes_of(parent_hash);
  gft_claim *raw = nullptr;
  bool present = false;
  call([&] {
    gft_status status = gft_writer_claim(writer.handle.get(), view(hash), view(parent), position, &raw);
    present = status == GFT_PRESENT;
    return present ? GFT_OK : status;
  });
  if (present) return std::nullopt;
  PyClaim out;
  out.handle = owned(raw, gft_claim_free);
  gft_claim_info(raw, &out.slot, &out.address);
  return out;
}

PyRead find(const PyWriter &writer, const py::bytes &block_hash, const std::optional<py::bytes> &parent_hash) {
  std::string hash = bytes_of(block_hash);
  auto parent = bytes_of(parent_hash);
  gft_read *raw = nullptr;
  call([&] { return gft_writer_find(writer.handle.get(), view(hash), view(parent), &raw); });
  PyRead out;
  out.handle = owned(raw, gft_read_free);
  gft_read_info(raw, &out.slot, &out.address, &out.payload_bytes);
  return out;
}

template <gft_status (*Mark)(gft_writer *, const gft_bytes *, size_t)>
void mark(const PyWriter &writer, const py::sequence &block_hashes) {
  auto texts = bytes_of(block_hashes);
  auto hashes = views(texts);
  call([&] { return Mark(writer.handle.get(), hashes.data(), hashes.size()); });
}

uint64_t pin(const PyWriter &writer, const py::sequence &block_hashes, uint32_t until) {
  auto texts = bytes_of(block_hashes);
  auto hashes = views(texts);
  uint64_t pinned = 0;
  call([&] { return gft_writer_pin(writer.handle.get(), hashes.data(), hashes.size(), until, &pinned); });
  return pinned;
}

PyLedgerRecords read_ledger(const PyArena &arena) {
  auto handle = arena.get();
  PyLedgerRecords out;
  const char *end = "";
  call([&] {
    return gft_arena_read_ledger(
        handle.get(),
        [](void *context, uint32_t kind, gft_bytes payload) {
          static_cast<PyLedgerRecords *>(context)->records.emplace_back(
              kind, std::string(reinterpret_cast<const char *>(payload.data), payload.size));
        },
        &out, &end);
  });
  out.end = end;
  return out;
}

}  // namespace

void bind_writer(py::module_ &module) {
  module.def("link_of", link_of, py::arg("identity"));
  module.def("read_block", read_block, py::arg("arena"), py::arg("slot"), py::arg("into") = py::none());
  py::class_<PyIdentity>(module, "Identity")
      .def(py::init(&make_identity), py::kw_only(), py::arg("namespace_id"), py::arg("shard"), py::arg("position"),
           py::arg("epoch"), py::arg("payload_bytes"), py::arg("block_hash"), py::arg("parent_link"), py::arg("link"),
           py::arg("digest"))
      .def_property_readonly("namespace_id", bytes_field<&PyIdentity::name_space_id>)
      .def_readonly("shard", &PyIdentity::shard)
      .def_readonly("position", &PyIdentity::position)
      .def_readonly("epoch", &PyIdentity::epoch)
      .def_readonly("payload_bytes", &PyIdentity::payload_bytes)
      .def_property_readonly("block_hash", bytes_field<&PyIdentity::block_hash>)
      .def_property_readonly("parent_link", bytes_field<&PyIdentity::parent_link>)
      .def_property_readonly("link", bytes_field<&PyIdentity::link>)
      .def_property_readonly("digest", bytes_field<&PyIdentity::digest>);

  py::class_<PyClaim>(module, "Claim")
      .def_readonly("slot", &PyClaim::slot)
      .def_readonly("address", &PyClaim::address)
      .def("seal", [](const PyClaim &c) { call([&] { return gft_claim_seal(c.handle.get()); }); })
      .def("seal_as", seal_as, py::arg("identity"), py::kw_only(), py::arg("parent_hash"), py::arg("hold") = true)
      .def("abandon", [](const PyClaim &c) { call([&] { return gft_claim_abandon(c.handle.get()); }); });

  py::class_<PyRead>(module, "Read")
      .def_readonly("slot", &PyRead::slot)
      .def_readonly("address", &PyRead::address)
      .def_readonly("payload_bytes", &PyRead::payload_bytes)
      .def_property_readonly("identity", identity_of_read)
      .def("verify", [](const PyRead &r) { call([&] { return gft_read_verify(r.handle.get()); }); })
      .def("recheck", [](const PyRead &r) { call([&] { return gft_read_recheck(r.handle.get()); }); });

  py::class_<PyWriter>(module, "Writer")
      .def_readonly("shard", &PyWriter::shard)
      .def_readonly("epoch", &PyWriter::epoch)
      .def_readonly("namespace", &PyWriter::name_space)
      .def("claim", claim, py::kw_only(), py::arg("block_hash"), py::arg("parent_hash"), py::arg("position"))
      .def("find", find, py::kw_only(), py::arg("block_hash"), py::arg("parent_hash"))
      .def("hold", mark<gft_writer_hold>, py::arg("block_hashes"))
      .def("release", mark<gft_writer_release>, py::arg("block_hashes"))
      .def("touch", mark<gft_writer_touch>, py::arg("block_hashes"))
      .def("pin", pin, py::arg("block_hashes"), py::kw_only(), py::arg("until"))
      .def("close", [](const PyWriter &w) { call([&] { return gft_writer_close(w.handle.get()); }); });
}

void bind_ledger(py::module_ &module) {
  py::class_<PyLedgerRecords>(module, "LedgerRecords")
      .def_property_readonly("records",
                             [](const PyLedgerRecords &r) {
                               py::list out;
                               for (const auto &[kind, payload] : r.records)
                                 out.append(py::make_tuple(kind, py::bytes(payload)));
                               return out;
                             })
      .def_readonly("end", &PyLedgerRecords::end);

  py::class_<PyLedger>(module, "Ledger")
      .def_property_readonly("used", [](const PyLedger &l) { return l.usage().first; })
      .def_property_readonly("capacity", [](const PyLedger &l) { return l.usage().second; })
      .def(
          "append",
          [](const PyLedger &l, uint32_t kind, const py::bytes &payload) {
            std::string_view text = payload;  // immutable and referenced by the caller: valid without the GIL
            call([&] {
              return gft_ledger_append(l.handle.get(), kind, {reinterpret_cast<const uint8_t *>(text.data()), text.size()});
            });
          },
          py::arg("kind"), py::arg("payload"))
      .def("begin_compaction", [](const PyLedger &l) { call([&] { return gft_ledger_begin_compaction(l.handle.get()); }); })
      .def("commit_compaction",
           [](const PyLedger &l) { call([&] { return gft_ledger_commit_compaction(l.handle.get()); }); })
      .def("abort_compaction", [](const PyLedger &l) { call([&] { return gft_ledger_abort_compaction(l.handle.get()); }); })
      .def("close", [](const PyLedger &l) { call([&] { return gft_ledger_close(l.handle.get()); }); });

  auto arena = py::reinterpret_borrow<py::class_<PyArena>>(module.attr("Arena"));
  arena.def("read_ledger", read_ledger);
  arena.def(
      "open_ledger",
      [](const PyArena &a, bool takeover) {
        auto handle = a.get();
        gft_ledger *raw = nullptr;
        call([&] { return gft_arena_open_ledger(handle.get(), takeover, &raw); });
        return PyLedger{owned(raw, gft_ledger_free)};
      },
      py::kw_only(), py::arg("takeover") = false);
}

}  // namespace bind
