// Python's DiskLog, DiskKey and DiskEntry: the disk log for tests, tools and `dynamo-gpu-ft inspect`.
// Payloads come in as any contiguous buffer and go out as bytes or into addresses the caller vouches for.
#include <cstring>

#include "bind_disk.h"
#include "gft_disk.h"

namespace bind {
namespace {

py::bytes bytes16(const uint8_t (&bytes)[16]) { return {reinterpret_cast<const char *>(bytes), 16}; }

void set16(uint8_t (&to)[16], const py::bytes &from, const char *what) {
  std::string_view text = from;
  if (text.size() != 16) throw py::value_error(std::string(what) + " must have 16 bytes");
  std::memcpy(to, text.data(), 16);
}

py::buffer_info contiguous(const py::buffer &data) {
  py::buffer_info info = data.request();
  py::ssize_t expected = info.itemsize;
  for (auto i = info.ndim; i-- > 0; expected *= info.shape[static_cast<size_t>(i)])
    if (info.strides[static_cast<size_t>(i)] != expected) throw py::value_error("the payload must be contiguous");
  return info;
}

gft_disk_key make_key(const py::bytes &name_space, uint32_t shard, uint64_t position, uint64_t epoch,
                      const py::bytes &block_hash, const py::bytes &parent_link, uint64_t payload_bytes, const py::bytes &link,
                      const py::bytes &digest) {
  gft_disk_key key{};
  set16(key.name_space, name_space, "namespace");
  set16(key.parent_link, parent_link, "parent_link");
  set16(key.link, link, "link");
  set16(key.digest, digest, "digest");
  key.shard = shard;
  key.position = position;
  key.epoch = epoch;
  key.payload_bytes = payload_bytes;
  std::string_view hash = block_hash;
  if (hash.empty() || hash.size() > sizeof key.hash) throw py::value_error("block_hash must have 1 to 64 bytes");
  key.hash_bytes = static_cast<uint32_t>(hash.size());
  std::memcpy(key.hash, hash.data(), hash.size());
  return key;
}

gft_disk_key sealed_key(const py::bytes &name_space, uint32_t shard, uint64_t position, uint64_t epoch,
                        const py::bytes &block_hash, const py::bytes &parent_link, const py::buffer &payload) {
  py::buffer_info info = contiguous(payload);
  py::bytes zeros("\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 16);
  auto bytes = static_cast<uint64_t>(info.size * info.itemsize);
  gft_disk_key key = make_key(name_space, shard, position, epoch, block_hash, parent_link, bytes, zeros, zeros);
  py::gil_scoped_release released;
  gft_disk_seal(&key, static_cast<const uint8_t *>(info.ptr));
  return key;
}

uint32_t one_of(const std::string &value, std::initializer_list<const char *> names) {
  uint32_t index = 0;
  for (const char *name : names) {
    if (value == name) return index;
    ++index;
  }
  raise_core_error("invalid", "\"" + value + "\" is none of the allowed values; see the stub");
}

using Fault = std::tuple<std::string, uint64_t, uint64_t, int>;

PyLog open_log(const std::string &folder, bool read_only, bool takeover, uint64_t segment_bytes, uint64_t cap_bytes,
               uint64_t staging_bytes, uint64_t group_bytes, uint32_t window_ms, uint32_t depth, uint32_t read_threads,
               uint32_t idle_ms, double live_ratio, const std::string &compress, const std::string &backend, bool direct,
               const std::string &digest, const std::vector<Fault> &faults) {
  gft_disk_options options;
  gft_disk_defaults(&options);
  if (segment_bytes) options.segment_bytes = segment_bytes;
  options.cap_bytes = cap_bytes;
  if (staging_bytes) options.staging_bytes = staging_bytes;
  if (group_bytes) options.group_bytes = group_bytes;
  options.window_ms = window_ms;
  options.depth = depth;
  options.read_threads = read_threads;
  options.idle_ms = idle_ms;
  options.live_ratio = live_ratio;
  options.compress = one_of(compress, {"none", "zstd", "lz4"});
  options.backend = one_of(backend, {"best", "io_uring", "threads"});
  options.direct = direct;
  options.takeover = takeover;
  options.digest = digest.c_str();
  std::vector<gft_disk_fault> list;
  for (const auto &[kind, nth, count, error] : faults)
    list.push_back({one_of(kind, {"read", "write", "sync"}), nth, count, error});
  options.faults = list.data();
  options.fault_count = list.size();
  gft_disk *raw = nullptr;
  call([&] { return gft_disk_open(folder.c_str(), &options, read_only, &raw); });
  return {owned(raw, gft_disk_free)};
}

std::string append(const PyLog &log, const gft_disk_key &key, const py::buffer &payload, uint64_t ticket, double timeout) {
  py::buffer_info info = contiguous(payload);
  if (static_cast<uint64_t>(info.size * info.itemsize) != key.payload_bytes)
    throw py::value_error("the payload's length is not the key's payload_bytes");
  gft_status status = GFT_OK;
  call([&] {
    status = gft_disk_append(log.get(), &key, static_cast<const uint8_t *>(info.ptr), ticket, timeout);
    return status == GFT_PRESENT ? GFT_OK : status;
  });
  return gft_status_name(status);
}

void collect(void *context, const gft_disk_entry *entry) {
  static_cast<std::vector<gft_disk_entry> *>(context)->push_back(*entry);
}

std::vector<std::pair<uint64_t, std::string>> poll(const PyLog &log) {
  std::vector<std::pair<uint64_t, std::string>> out;
  call([&] {
    return gft_disk_poll(
        log.get(),
        [](void *to, uint64_t ticket, gft_status status) {
          static_cast<decltype(out) *>(to)->emplace_back(ticket, gft_status_name(status));
        },
        &out);
  });
  return out;
}

std::vector<gft_disk_entry> find(const PyLog &log, const py::bytes &name_space, uint32_t shard, const py::bytes &block_hash,
                                 int64_t position) {
  uint8_t id[16];
  set16(id, name_space, "namespace");
  std::string hash = bytes_of(block_hash);
  std::vector<gft_disk_entry> out;
  call([&] { return gft_disk_find(log.get(), id, shard, view(hash), position, collect, &out); });
  return out;
}

using Piece = std::tuple<uint64_t, uint64_t, uint64_t>;  // from, bytes, address
using Wanted = std::pair<gft_disk_entry, std::vector<Piece>>;

std::vector<std::pair<std::string, std::string>> read_into(const PyLog &log, const std::vector<Wanted> &wanted, double timeout) {
  std::vector<std::vector<gft_disk_range>> ranges;
  std::vector<gft_disk_read> reads;
  for (const auto &[entry, pieces] : wanted) {
    auto &list = ranges.emplace_back();
    for (const auto &[from, bytes, address] : pieces) list.push_back({from, bytes, reinterpret_cast<uint8_t *>(address)});
  }
  for (size_t i = 0; i < wanted.size(); ++i)
    reads.push_back({&wanted[i].first, ranges[i].data(), ranges[i].size(), GFT_INTERNAL});
  std::vector<std::pair<std::string, std::string>> out(wanted.size());
  call([&] {
    return gft_disk_read_many(
        log.get(), reads.data(), reads.size(), timeout,
        [](void *to, size_t index, const char *text) { (*static_cast<decltype(out) *>(to))[index].second = text; }, &out);
  });
  for (size_t i = 0; i < reads.size(); ++i) out[i].first = gft_status_name(reads[i].status);
  return out;
}

py::bytes read(const PyLog &log, const gft_disk_entry &entry, uint64_t from, std::optional<uint64_t> bytes, double timeout) {
  uint64_t wanted = bytes ? *bytes : entry.key.payload_bytes - std::min(from, entry.key.payload_bytes);
  if (wanted > entry.key.payload_bytes) raise_core_error("invalid", "more bytes are wanted than the payload has");
  py::bytes out(nullptr, wanted);
  char *to = PyBytes_AS_STRING(out.ptr());
  auto answer = read_into(log, {{entry, {{from, wanted, reinterpret_cast<uint64_t>(to)}}}}, timeout);
  if (answer[0].first != "ok") raise_core_error(answer[0].first.c_str(), answer[0].second);
  return out;
}

template <int What>
void mark(const PyLog &log, const py::sequence &links) {
  auto texts = bytes_of(links);
  std::vector<uint8_t> flat(texts.size() * 16);
  for (size_t i = 0; i < texts.size(); ++i) {
    if (texts[i].size() != 16) throw py::value_error("a link must have 16 bytes");
    std::memcpy(&flat[i * 16], texts[i].data(), 16);
  }
  call([&] { return gft_disk_mark(log.get(), reinterpret_cast<const uint8_t(*)[16]>(flat.data()), texts.size(), What); });
}

py::dict stats(const PyLog &log) {
  struct Copy {
    std::vector<double> numbers;
    std::string reason, text, backend, digest;
  } copy;
  call([&] {
    return gft_disk_get_stats(
        log.get(),
        [](void *to, const gft_disk_stats *from) {
          auto &out = *static_cast<Copy *>(to);
          out = {{from->numbers, from->numbers + from->count}, gft_status_name(from->reason), from->reason_text, from->backend,
                 from->digest};
        },
        &copy);
  });
  py::dict out;
  for (size_t i = 0; i < copy.numbers.size(); ++i) {
    std::string name = gft_disk_number_name(i);
    if (name == "writable" || name == "direct")
      out[name.c_str()] = copy.numbers[i] != 0;
    else if (name == "open_seconds")
      out[name.c_str()] = copy.numbers[i];
    else
      out[name.c_str()] = static_cast<uint64_t>(copy.numbers[i]);
  }
  out["reason"] = copy.reason;
  out["reason_text"] = copy.text;
  out["backend"] = copy.backend;
  out["digest"] = copy.digest;
  return out;
}

}  // namespace

void bind_disk(py::module_ &module) {
  module.def(
      "disk_users",
      [](const std::string &folder) {
        uint64_t writer = 0;
        int readers = 0;
        call([&] { return gft_disk_users(folder.c_str(), &writer, &readers); });
        return std::pair(writer, readers != 0);
      },
      py::arg("folder"));
  module.def(
      "disk_set_aside",
      [](const std::string &folder, const std::string &to, bool even_if_read) {
        call([&] { return gft_disk_set_aside(folder.c_str(), to.c_str(), even_if_read); });
      },
      py::arg("folder"), py::arg("to"), py::kw_only(), py::arg("even_if_read") = false);
  py::class_<gft_disk_key>(module, "DiskKey")
      .def(py::init(&make_key), py::kw_only(), py::arg("namespace"), py::arg("shard"), py::arg("position"), py::arg("epoch"),
           py::arg("block_hash"), py::arg("parent_link"), py::arg("payload_bytes"), py::arg("link"), py::arg("digest"))
      .def_static("seal", &sealed_key, py::kw_only(), py::arg("namespace"), py::arg("shard"), py::arg("position"),
                  py::arg("epoch"), py::arg("block_hash"), py::arg("parent_link"), py::arg("payload"))
      .def_property_readonly("namespace", [](const gft_disk_key &k) { return bytes16(k.name_space); })
      .def_property_readonly("parent_link", [](const gft_disk_key &k) { return bytes16(k.parent_link); })
      .def_property_readonly("link", [](const gft_disk_key &k) { return bytes16(k.link); })
      .def_property_readonly("digest", [](const gft_disk_key &k) { return bytes16(k.digest); })
      .def_property_readonly("block_hash",
                             [](const gft_disk_key &k) {
                               return py::bytes(reinterpret_cast<const char *>(k.hash), k.hash_bytes);
                             })
      .def_readonly("shard", &gft_disk_key::shard)
      .def_readonly("position", &gft_disk_key::position)
      .def_readonly("epoch", &gft_disk_key::epoch)
      .def_readonly("payload_bytes", &gft_disk_key::payload_bytes);

  py::class_<gft_disk_entry>(module, "DiskEntry")
      .def_readonly("key", &gft_disk_entry::key)
      .def_readonly("segment", &gft_disk_entry::segment)
      .def_readonly("offset", &gft_disk_entry::offset)
      .def_readonly("stored_bytes", &gft_disk_entry::stored_bytes)
      .def_property_readonly("codec", [](const gft_disk_entry &e) {
        return e.codec == 1 ? "zstd" : e.codec == 2 ? "lz4" : "none";
      });

  py::class_<PyLog>(module, "DiskLog")
      .def_static("open", open_log, py::arg("folder"), py::kw_only(), py::arg("read_only") = false, py::arg("takeover") = false,
                  py::arg("segment_bytes") = 0, py::arg("cap_bytes") = 0, py::arg("staging_bytes") = 0,
                  py::arg("group_bytes") = 0, py::arg("window_ms") = 20, py::arg("depth") = 32,
                  py::arg("read_threads") = 1, py::arg("idle_ms") = 10000,
                  py::arg("live_ratio") = 0.5, py::arg("compress") = "none", py::arg("backend") = "best",
                  py::arg("direct") = true, py::arg("digest") = "", py::arg("faults") = std::vector<Fault>())
      .def("add_namespace",
           [](const PyLog &log, const py::bytes &record) {
             std::string text = bytes_of(record);
             uint8_t id[16];
             call([&] { return gft_disk_add_namespace(log.get(), view(text), id); });
             return bytes16(id);
           },
           py::arg("record"))
      .def("append", append, py::arg("key"), py::arg("payload"), py::arg("ticket") = 0, py::arg("timeout") = 30.0)
      .def("poll", poll)
      .def("flush",
           [](const PyLog &log, double timeout) {
             int done = 0;
             call([&] { return gft_disk_flush(log.get(), timeout, &done); });
             return done != 0;
           },
           py::arg("timeout") = 30.0)
      .def("find", find, py::arg("namespace"), py::arg("shard"), py::arg("block_hash"), py::arg("position") = -1)
      .def("find_link",
           [](const PyLog &log, const py::bytes &link) {
             uint8_t id[16];
             set16(id, link, "link");
             gft_disk_entry out;
             bool found = true;
             call([&] {
               gft_status status = gft_disk_find_link(log.get(), id, &out);
               found = status == GFT_OK;
               return status == GFT_NOT_FOUND ? GFT_OK : status;
             });
             return found ? std::optional(out) : std::nullopt;
           },
           py::arg("link"))
      .def("entries",
           [](const PyLog &log) {
             std::vector<gft_disk_entry> out;
             call([&] { return gft_disk_entries(log.get(), collect, &out); });
             return out;
           })
      .def("namespaces",
           [](const PyLog &log) {
             std::vector<std::string> texts;
             call([&] {
               return gft_disk_namespaces(
                   log.get(),
                   [](void *to, gft_bytes record) {
                     static_cast<std::vector<std::string> *>(to)->emplace_back(reinterpret_cast<const char *>(record.data),
                                                                               record.size);
                   },
                   &texts);
             });
             py::list out;
             for (const auto &text : texts) out.append(py::bytes(text));
             return out;
           })
      .def("read", read, py::arg("entry"), py::arg("start") = 0, py::arg("size") = py::none(), py::arg("timeout") = 30.0)
      .def("read_into", read_into, py::arg("wanted"), py::arg("timeout") = 30.0)
      .def("touch", mark<0>, py::arg("links"))
      .def("hold", mark<1>, py::arg("links"))
      .def("release", mark<2>, py::arg("links"))
      .def("drop",
           [](const PyLog &log, const gft_disk_entry &entry) { call([&] { return gft_disk_drop(log.get(), &entry); }); },
           py::arg("entry"))
      .def("refresh", [](const PyLog &log) { call([&] { return gft_disk_refresh(log.get()); }); })
      .def("stats", stats)
      .def("close",
           [](const PyLog &log, double timeout) {
             int done = 0;
             call([&] { return gft_disk_close(log.get(), timeout, &done); });
             return done != 0;
           },
           py::arg("timeout") = 30.0);
}

}  // namespace bind
