// Python's side of the heartbeat: the writing slot, the watch and the decision alone.
// begin and end are called twice per step: they take no lock, build nothing and keep the GIL.
#include "bind_watch.h"
#include "gft_beats.h"

namespace bind {
namespace {

struct PyBeat {
  std::shared_ptr<gft_beat> handle;
};
struct PyHangWatch {
  std::shared_ptr<gft_hang_watch> handle;  // empty once stopped
};
struct PyJudge {
  std::shared_ptr<gft_judge> handle;
};

gft_hang_rules rules_of(double after, double floor, double unknown, double silent, double no_step, double poll) {
  gft_hang_rules rules;
  gft_hang_defaults(&rules);
  rules.after_s = after;
  rules.floor_s = floor;
  rules.unknown_s = unknown;
  rules.silent_s = silent;
  rules.no_step_s = no_step;
  rules.poll_s = poll;
  return rules;
}

void bind_beat(py::module_ &module) {
  py::class_<PyBeat>(module, "Beat")
      .def(py::init([](const std::string &path, uint32_t rank, uint32_t ranks, double tick) {
             gft_beat *handle = nullptr;
             call([&] { return gft_beat_open(path.c_str(), ranks, rank, tick, &handle); });
             return PyBeat{owned(handle, gft_beat_free)};
           }),
           py::arg("path"), py::kw_only(), py::arg("rank"), py::arg("ranks"), py::arg("tick") = 0.05)
      .def(
          "begin", [](const PyBeat &beat, uint32_t kind, uint64_t step) { gft_beat_begin(beat.handle.get(), kind, step); },
          py::arg("kind"), py::arg("step") = 0)
      .def("end", [](const PyBeat &beat) { gft_beat_end(beat.handle.get()); })
      .def(
          "busy", [](const PyBeat &beat, double limit) { gft_beat_busy(beat.handle.get(), limit); }, py::arg("limit"))
      .def("idle", [](const PyBeat &beat) { gft_beat_idle(beat.handle.get()); })
      .def("leave", [](const PyBeat &beat) { gft_beat_leave(beat.handle.get()); })
      .def_property_readonly("steps", [](const PyBeat &beat) { return gft_beat_steps(beat.handle.get()); })
      .def_property_readonly("ours", [](const PyBeat &beat) { return gft_beat_ours(beat.handle.get()) != 0; })
      .def("device_word", [](const PyBeat &beat) {
        uint64_t page = 0, bytes = 0, word = gft_beat_device_word(beat.handle.get(), &page, &bytes);
        return std::make_tuple(word, page, bytes);
      });
}

void bind_look(py::module_ &module) {
  module.def(
      "look_at_heartbeats",
      [](const std::string &path) {
        std::vector<gft_beat_state> states;
        call([&] {
          return gft_beats_look(
              path.c_str(),
              [](void *to, const gft_beat_state *state) { static_cast<std::vector<gft_beat_state> *>(to)->push_back(*state); },
              &states);
        });
        static constexpr const char *kPhases[] = {"empty", "idle", "step", "busy", "left"};
        py::list found;
        for (const gft_beat_state &state : states) {
          found.append(py::dict(py::arg("rank") = state.rank, py::arg("phase") = state.phase < 5 ? kPhases[state.phase] : "unknown",
                                py::arg("kind") = state.kind, py::arg("pid") = state.pid, py::arg("step") = state.step,
                                py::arg("device_step") = state.device_step,
                                py::arg("began") = 1e-9 * static_cast<double>(state.began_ns),
                                py::arg("tick") = 1e-9 * static_cast<double>(state.tick_ns)));
        }
        return found;
      },
      py::arg("path"));
}

}  // namespace

void bind_beats(py::module_ &module) {
  bind_beat(module);
  bind_look(module);
  module.def(
      "make_heartbeat_file",
      [](const std::string &path, uint32_t ranks) { call([&] { return gft_beats_make(path.c_str(), ranks); }); },
      py::arg("path"), py::arg("ranks"));
  py::class_<PyHangWatch>(module, "HangWatch")
      .def(py::init([](const PyWatchQueue &queue, const std::string &path, uint32_t ranks, double after, double floor,
                       double unknown, double silent, double no_step, double poll) {
             gft_hang_watch *handle = nullptr;
             const gft_hang_rules rules = rules_of(after, floor, unknown, silent, no_step, poll);
             call([&] { return gft_hang_watch_start(queue.get(), path.c_str(), ranks, &rules, &handle); });
             return PyHangWatch{owned(handle, gft_hang_watch_free)};
           }),
           py::arg("queue"), py::arg("path"), py::kw_only(), py::arg("ranks"), py::arg("after") = 0.45,
           py::arg("floor") = 0.5, py::arg("unknown") = 60.0, py::arg("silent") = 0.45, py::arg("no_step") = 60.0,
           py::arg("poll") = 0.02)
      .def(
          "expect", [](const PyHangWatch &watch, bool work) {
            if (watch.handle) gft_hang_watch_expect(watch.handle.get(), work);
          },
          py::arg("work"))
      .def("stop", [](PyHangWatch &watch) { watch.handle.reset(); });

  py::class_<PyJudge>(module, "HangJudge")
      .def(py::init([](double after, double floor, double unknown, double silent) {
             gft_judge *handle = nullptr;
             const gft_hang_rules rules = rules_of(after, floor, unknown, silent, 1, 1);
             check(gft_judge_create(&rules, &handle));
             return PyJudge{owned(handle, gft_judge_free)};
           }),
           py::kw_only(), py::arg("after") = 0.45, py::arg("floor") = 0.5, py::arg("unknown") = 60.0,
           py::arg("silent") = 0.45)
      .def(
          "learn", [](const PyJudge &judge, uint32_t kind, double seconds) { gft_judge_learn(judge.handle.get(), kind, seconds); },
          py::arg("kind"), py::arg("seconds"))
      .def(
          "usual", [](const PyJudge &judge, uint32_t kind) { return gft_judge_usual(judge.handle.get(), kind); },
          py::arg("kind"))
      .def(
          "look",
          [](const PyJudge &judge, double now, uint32_t phase, uint64_t step, double began, uint32_t kind, double limit,
             double tick, uint64_t device_step, double stolen, double most) {
            const gft_seen seen{phase, kind, step, device_step, began, limit, tick};
            int verdict = 0;
            const char *cause = "";
            double limit_s = 0;
            check(gft_judge_look(judge.handle.get(), now, most, &seen, stolen, &verdict, &cause, &limit_s));
            return std::make_tuple(verdict, cause, limit_s);
          },
          py::arg("now"), py::kw_only(), py::arg("phase"), py::arg("step"), py::arg("began"), py::arg("kind") = 0,
          py::arg("limit") = 0.0, py::arg("tick") = 0.0, py::arg("device_step") = 0, py::arg("stolen") = 0.0,
          py::arg("most") = 0.04);
}

}  // namespace bind
