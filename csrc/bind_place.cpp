// Python's place_room, place_plan, place_recover, place_repair and place_examine: tables and loads come as contiguous buffers and go as bytes.
// Sizes of buffers are checked here with the GIL; all work is done without it.
#include "bind.h"
#include "gft_place.h"

namespace bind {
namespace {

struct Given {
  gft_place_problem problem{};
  std::vector<py::buffer_info> keep;
};

// A contiguous buffer of exactly `count` items of `item` bytes.
void *items(Given &given, const py::buffer &buffer, size_t count, size_t item, const char *what) {
  py::buffer_info info = buffer.request();
  py::ssize_t bytes = info.itemsize;
  bool contiguous = true;
  for (auto i = info.ndim; i-- > 0; bytes *= info.shape[static_cast<size_t>(i)])
    contiguous = contiguous && info.strides[static_cast<size_t>(i)] == bytes;
  if (!contiguous || static_cast<size_t>(bytes) != count * item)
    raise_core_error("invalid", std::string(what) + " of " + std::to_string(bytes) + " bytes; it has " + std::to_string(count) + " items of " +
                                    std::to_string(item) + " bytes, without gaps");
  void *address = info.ptr;
  given.keep.push_back(std::move(info));
  return address;
}

// Sizes in one tuple: layers, experts, ranks, slots, losses, level, instant.
using Sizes = std::tuple<uint32_t, uint32_t, uint32_t, uint32_t, uint32_t, uint32_t, bool>;

Given gather(const Sizes &sizes, const py::buffer &loads, const py::buffer &alive, const py::buffer &domains,
             const std::optional<py::buffer> &old, uint64_t max_moves) {
  Given given;
  auto &p = given.problem;
  std::tie(p.layers, p.experts, p.ranks, p.slots, p.losses, p.level, std::ignore) = sizes;
  p.instant = std::get<6>(sizes);
  p.max_moves = max_moves;
  if (p.layers > 1u << 20 || p.experts > 1u << 20 || p.ranks > 1u << 20 || p.slots > 1u << 20)
    raise_core_error("invalid", "sizes of a placement beyond 2^20");
  p.loads = static_cast<const int64_t *>(items(given, loads, size_t{p.layers} * p.experts, 8, "loads"));
  p.alive = static_cast<const uint8_t *>(items(given, alive, p.ranks, 1, "a mask of live ranks"));
  p.domains = static_cast<const int32_t *>(items(given, domains, size_t{4} * p.ranks, 4, "failure domains"));
  if (old) p.old = static_cast<const int32_t *>(items(given, *old, size_t{p.layers} * p.ranks * p.slots, 4, "an old placement"));
  return given;
}

uint64_t place_room(const Sizes &sizes, const py::buffer &loads, const py::buffer &alive, const py::buffer &domains) {
  Given given = gather(sizes, loads, alive, domains, std::nullopt, 0);
  uint64_t experts = 0;
  call([&] { return gft_place_room(&given.problem, &experts); });
  return experts;
}

template <gft_status (*solve)(const gft_place_problem *, int32_t *)>
py::bytes solved(const Sizes &sizes, const py::buffer &loads, const py::buffer &alive, const py::buffer &domains,
                 const std::optional<py::buffer> &old, uint64_t max_moves) {
  Given given = gather(sizes, loads, alive, domains, old, max_moves);
  const auto &p = given.problem;
  std::vector<int32_t> table;
  call([&] {
    table.assign(size_t{p.layers} * p.ranks * p.slots, -1);
    return solve(&p, table.data());
  });
  return {reinterpret_cast<const char *>(table.data()), table.size() * sizeof(int32_t)};
}

py::tuple place_examine(const Sizes &sizes, const py::buffer &loads, const py::buffer &alive, const py::buffer &domains,
                        const py::buffer &table) {
  Given given = gather(sizes, loads, alive, domains, table, 0);
  gft_place_facts facts{};
  std::vector<uint32_t> copies(given.problem.layers), balance(given.problem.layers);
  call([&] { return gft_place_examine(&given.problem, given.problem.old, &facts, copies.data(), balance.data()); });
  auto pair = [](const uint64_t *both) { return std::make_pair(both[0], both[1]); };
  return py::make_tuple(pair(facts.one), pair(facts.two),
                        std::vector{pair(facts.domains[0]), pair(facts.domains[1]), pair(facts.domains[2])}, copies, balance);
}

}  // namespace

void bind_place(py::module_ &module) {
  module.def("place_room", &place_room, py::arg("sizes"), py::arg("loads"), py::arg("alive"), py::arg("domains"));
  module.def("place_plan", &solved<gft_place_plan>, py::arg("sizes"), py::arg("loads"), py::arg("alive"), py::arg("domains"),
             py::arg("old"), py::arg("max_moves"));
  module.def("place_recover", &solved<gft_place_recover>, py::arg("sizes"), py::arg("loads"), py::arg("alive"), py::arg("domains"),
             py::arg("old"), py::arg("max_moves"));
  module.def("place_repair", &solved<gft_place_repair>, py::arg("sizes"), py::arg("loads"), py::arg("alive"), py::arg("domains"),
             py::arg("old"), py::arg("max_moves"));
  module.def("place_examine", &place_examine, py::arg("sizes"), py::arg("loads"), py::arg("alive"), py::arg("domains"),
             py::arg("table"));
}

}  // namespace bind
