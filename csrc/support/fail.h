// How the core reports a failure inside itself: one exception type that carries a status and the full text.
// It is thrown anywhere below the door and caught at the door only, where it becomes a status code.
#pragma once

#include <cstdarg>
#include <cstdio>
#include <exception>
#include <string>

#include "../gft.h"

namespace gft {

struct Fail {
  gft_status code;
  std::string text;
};

// Says what failed, where, the value seen, the rule, and one thing to try.
[[noreturn]] [[gnu::format(printf, 2, 3)]] inline void fail(gft_status code, const char *format, ...) {
  char text[1024];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  throw Fail{code, text};
}

// What is being caught, as a failure; for the few places where no exception may pass.
inline Fail current_failure() {
  try {
    throw;
  } catch (const Fail &why) {
    return why;
  } catch (const std::exception &why) {
    return {GFT_INTERNAL, std::string("the native core failed: ") + why.what() + "; free memory and try again"};
  } catch (...) {
    return {GFT_INTERNAL, "the native core failed for an unknown reason; report it"};
  }
}

}  // namespace gft
