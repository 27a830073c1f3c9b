// Marks a read that may race with a writer on purpose: what it reads is checked afterwards and thrown away when it changed.
// Only ThreadSanitizer sees the mark; without it this is nothing.
#pragma once

#if defined(__SANITIZE_THREAD__)
extern "C" {
void AnnotateIgnoreReadsBegin(const char *file, int line);
void AnnotateIgnoreReadsEnd(const char *file, int line);
}
#endif

namespace gft {

class OptimisticRead {
 public:
#if defined(__SANITIZE_THREAD__)
  OptimisticRead() { AnnotateIgnoreReadsBegin(__FILE__, __LINE__); }
  ~OptimisticRead() { AnnotateIgnoreReadsEnd(__FILE__, __LINE__); }
#else
  OptimisticRead() {}
  ~OptimisticRead() {}
#endif
  OptimisticRead(const OptimisticRead &) = delete;
  OptimisticRead &operator=(const OptimisticRead &) = delete;
};

}  // namespace gft
