// The kernel log under fire: a million damaged lines through the parser, a device that overwrites its records, and a file that is
// written, rotated, followed and taken from by several threads at once. Arguments: lines, seed.
#include <fcntl.h>
#include <sys/stat.h>

#include <cerrno>
#include <thread>

#include "../../../csrc/watch/log_reader.h"
#include "support.h"

using namespace gft::watch;

namespace {

const char *const kLines[] = {
    "NVRM: Xid (0000:03:00): 14, Channel 00000001",
    "4,1227,98765432,-;NVRM: Xid (PCI:0000:18:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.",
    "[   98.765432] NVRM: Xid (PCI:0000:4f:00 GPU-I:05 GPU-CI:00): 43, pid=512, name=a,b (c), Ch 00000008",
    "Jul  3 07:53:55 node kernel: NVRM: Xid (PCI:0000:4f:00): 45, pid=1, name=x, Ch 0000000b caused by previous Xid 48",
    "NVRM: Xid (PCI:0018:01:00): 149, NETIR_LINK_EVT  Fatal XC0 i0 Link 08 (0x004505c6 0x0 0x0 0x0 0x0 0x0 0x0)",
    "NVRM: Xid (PCI:0000:9b:00): 154, GPU recovery action changed from 0x0 (None) to 0x1 (GPU Reset Required)",
    "NVRM: Xid (PCI:0000:B3:0A): 74, NVLink: fatal error detected on link 14(0x0, 0x0, 0x10000, 0x0, 0x0, 0x0, 0x0)",
    "NVRM: Xid (PCI:10000:E1:00): 31, pid=8, name=x, Ch 10, MMU Fault: ENGINE GRAPHICS X faulted @ 0x7_0. Fault is of type F A",
    "nvidia-nvswitch3: SXid (PCI:0000:86:00.0): 20034, Fatal, Link 32 LTSSM Fault Up (First)",
    "nvidia-nvswitch3: SXid (PCI:0000:86:00.0): 20034, Data {0x00000032, 0x00000032, 0x00000000}",
    "2024-07-23T07:53:55.123456+00:00 node kernel: [   98.7] NVRM: GPU 0000:18:00.0: GPU has fallen off the bus.",
    "3,5,7,-;NVRM: The NVIDIA GPU 0000:b3:00.0\\x0aNVRM: (PCI ID: 10de:26b5) installed in this system has\\x0afallen off the bus and",
    "NVRM: GPU at PCI:0000:9b:00: GPU-5a3c1b7e-0d42-9f11-8c66-2b90aa71fe03",
    "python3[4012]: segfault at 7f ip 00 sp 00 error 4 in libnccl.so.2.21.5[7f0b+c000]",
    "INFO: task kworker/u64:3:912 blocked for more than 241 seconds.",
    "[Jul 23 2024 07:53:55] [ERROR] [tid 841] detected NVSwitch fatal error 20034 on fid 0 on NVSwitch pci bus id 00000000:86:00.0 "
    "physical id 3 port 33",
    "usb 1-1: new high-speed USB device number 2 using xhci_hcd",
};
constexpr size_t kCount = std::size(kLines);

void check(const Record &record) {
  CHECK(*record.what && record.count > 0 && record.code >= -1 && record.code < 1'000'000'000 && record.pid >= -1);
  CHECK(record.text.size() <= 512 && record.bdf.size() <= 14 && record.facts.size() <= Line::kFacts + 4);
  for (const auto &[name, value] : record.facts) CHECK(*name && !value.empty() && value.size() <= 256);
}

std::string damaged(Random &random) {
  std::string line = kLines[random.below(kCount)];
  for (uint64_t i = random.below(4); i-- > 0;) {
    size_t at = random.below(line.size() + 1);
    switch (random.below(6)) {
      case 0:
        line.resize(at);
        break;
      case 1:
        line.insert(at, 1, static_cast<char>(random()));
        break;
      case 2:
        if (at < line.size()) line[at] = static_cast<char>(random());
        break;
      case 3: {
        const std::string other = kLines[random.below(kCount)];
        line = line.substr(0, at) + other.substr(random.below(other.size()));
        break;
      }
      case 4:
        line.insert(at, line.substr(random.below(line.size() + 1)));
        break;
      default:
        line.erase(at, random.below(16));
    }
  }
  return line;
}

void many_lines(uint64_t lines, Random &random) {
  uint64_t records = 0, folded = 0;
  LogStream stream(LogFormat::text, true, {}, [&](const Record &record) {
    check(record);
    ++records;
    folded += record.count;
  });
  for (uint64_t i = 0; i < lines; ++i) {
    std::string line = damaged(random);
    Record one;
    if (parse_one(line, one)) check(one);
    line += '\n';
    size_t cut = random.below(line.size());
    stream.feed(std::string_view(line).substr(0, cut), 0);
    stream.feed(std::string_view(line).substr(cut), 0);
  }
  stream.finish(0);
  CHECK(stream.lines() >= lines && records <= folded && folded <= 2 * stream.lines());
  std::printf("kernel_log: %llu lines, %llu of them about GPUs, in %llu records\n", (unsigned long long)stream.lines(),
              (unsigned long long)folded, (unsigned long long)records);
}

// A device whose ring overwrote records 3 to 9 before they were read.
std::atomic<int> step{0};
ssize_t overwritten(int, void *into, size_t size) {
  const char *const records[] = {"4,1,100,-;NVRM: Xid (PCI:0000:18:00): 48, x\n DEVICE=y\n", "4,2,200,-;usb: noise\n", nullptr,
                                 "4,10,300,-;NVRM: Xid (PCI:0000:18:00): 63, x\n"};
  int now = step.fetch_add(1);
  if (now == 4) errno = EAGAIN;
  if (now == 5) {
    std::string young = "4,11," + std::to_string(now_ns() / 1000) + ",-;NVRM: Xid (PCI:0000:18:00): 79, x\n";
    CHECK(young.size() <= size);
    std::memcpy(into, young.data(), young.size());
    return static_cast<ssize_t>(young.size());
  }
  if (now > 5) errno = EAGAIN;
  if (now >= 4) return -1;
  if (!records[now]) {
    errno = EPIPE;
    return -1;
  }
  std::memcpy(into, records[now], std::strlen(records[now]));
  return static_cast<ssize_t>(std::strlen(records[now]));
}

std::vector<Record> taken(Queue &queue, size_t count) {
  std::vector<Record> out;
  for (int64_t end = now_ns() + 20'000'000'000; out.size() < count;) {
    CHECK(now_ns() < end);
    queue.wait(1);
    for (Record &record : queue.take()) out.push_back(std::move(record));
  }
  return out;
}

void device() {
  auto queue = std::make_shared<Queue>(64);
  LogReader reader(queue, "/dev/null", {LogFormat::automatic, true, {}, overwritten});
  auto found = taken(*queue, 4);
  const auto has = [](const Record &record, const std::string &name) {
    for (const auto &fact : record.facts)
      if (name == fact.first) return true;
    return false;
  };
  CHECK(found[0].code == 48 && found[0].serial == 1 && has(found[0], "baseline"));
  CHECK(found[1].what == std::string("gap") && found[1].count == 7);
  CHECK(found[2].code == 63 && found[2].serial == 10 && has(found[2], "baseline"));
  CHECK(found[3].code == 79 && found[3].serial == 11 && !has(found[3], "baseline"));
}

void everything_at_once() {
  std::string path = "/tmp/gft-kernel-log-" + std::to_string(getpid()), moved = path + ".1";
  constexpr uint64_t kTurns = 8, kEach = 2000;
  const auto append = [&path](const std::string &text) {
    int file = open(path.c_str(), O_WRONLY | O_APPEND | O_CREAT, 0600);
    CHECK(file >= 0 && write(file, text.data(), text.size()) == static_cast<ssize_t>(text.size()));
    close(file);
  };
  append("");
  auto queue = std::make_shared<Queue>(100'000);
  std::atomic<uint64_t> seen{0};
  std::atomic<bool> done{false};
  {
    Fold::Rules rules;
    rules.window_ns = 5'000'000;
    LogReader reader(queue, path, {LogFormat::automatic, false, rules, nullptr});
    std::thread consumer([&] {
      while (!done) {
        queue->wait(0.01);
        for (const Record &record : queue->take()) check(record), seen += record.what == std::string("gap") ? 0 : record.count;
      }
    });
    for (uint64_t turn = 1; turn <= kTurns; ++turn) {
      for (uint64_t i = 0; i < kEach; ++i)
        append("NVRM: Xid (PCI:0000:" + std::to_string(10 + i % 29) + ":00): " + std::to_string(60 + turn) + ", x\n");
      for (int64_t end = now_ns() + 60'000'000'000; seen < turn * kEach; usleep(1000)) CHECK(now_ns() < end);
      CHECK(rename(path.c_str(), moved.c_str()) == 0);
      append("");
    }
    done = true;
    consumer.join();
    CHECK(reader.lines() == kTurns * kEach);
  }
  CHECK(seen == kTurns * kEach && queue->lost() == 0);
  unlink(path.c_str());
  unlink(moved.c_str());
}

}  // namespace

int main(int argc, char **argv) {
  uint64_t lines = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 100'000;
  Random random{argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1};
  many_lines(lines, random);
  device();
  everything_at_once();
  std::puts("kernel_log: ok");
}
