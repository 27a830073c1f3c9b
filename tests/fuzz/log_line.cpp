// Fuzz target: a log in every format, from prefix to folded record. The first byte chooses the format, the second how the bytes are
// cut into pieces; the pieces must say what the whole says, and every record keeps its bounds.
#include <algorithm>

#include "../../csrc/watch/log_stream.h"
#include "../native/programs/support.h"

using namespace gft::watch;

namespace {

void check(const Record &record) {
  CHECK(*record.what && *record.source && record.count > 0);
  CHECK(record.code >= -1 && record.code < 1'000'000'000 && record.pid >= -1);
  CHECK(record.gi >= -1 && record.gi < 1000 && record.ci >= -1 && record.ci < 1000);
  CHECK(record.bdf.empty() || (record.bdf.size() >= 10 && record.bdf.size() <= 14));
  CHECK(record.uuid.empty() || record.uuid.size() == 40);
  CHECK(record.text.size() <= 512 && record.facts.size() <= Line::kFacts + 4);
  for (const auto &[name, value] : record.facts) CHECK(*name && !value.empty() && value.size() <= 256);
}

std::string told(const Record &record) {
  std::string out = std::string(record.what) + '|' + std::to_string(record.code) + '|' + record.bdf + '|' +
                    std::to_string(record.count) + '|' + std::to_string(record.serial) + '|' + record.text;
  for (const auto &[name, value] : record.facts) out += '|' + std::string(name) + '=' + value;
  return out;
}

std::vector<std::string> parsed(std::string_view log, LogFormat format, bool own_clock, size_t piece) {
  std::vector<std::string> out;
  LogStream stream(format, own_clock, {}, [&out](const Record &record) {
    check(record);
    out.push_back(told(record));
  });
  for (size_t at = 0; at < log.size(); at += piece) stream.feed(log.substr(at, piece), 1);
  stream.finish(1);
  std::sort(out.begin(), out.end());  // what is left at the end comes in the table's order
  return out;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size) {
  if (size < 2) return 0;
  constexpr LogFormat formats[] = {LogFormat::text, LogFormat::journal, LogFormat::kmsg, LogFormat::trace};
  LogFormat format = formats[bytes[0] % 4];
  bool own_clock = bytes[0] & 4;
  std::string_view log(reinterpret_cast<const char *>(bytes) + 2, size - 2);
  auto whole = parsed(log, format, own_clock, std::max<size_t>(log.size(), 1));
  CHECK(whole == parsed(log, format, own_clock, 1 + bytes[1] % 61));
  Record one;
  if (parse_one(log, one)) check(one);
  LogStream records(LogFormat::kmsg, false, {}, check);
  records.record(log, 1);
  records.finish(1);
  return 0;
}
