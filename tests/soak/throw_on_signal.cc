// Preloaded into a server: after SIGRTMIN + 5 the next allocation of the process's first thread fails, as if there were
// no memory, wherever it is.
#include <csignal>
#include <cstdlib>
#include <new>

#include <unistd.h>

namespace {

volatile std::sig_atomic_t armed = 0;

void arm(int) { armed = 1; }

__attribute__((constructor)) void listen() { std::signal(SIGRTMIN + 5, arm); }

}  // namespace

void* operator new(std::size_t bytes) {
  if (armed != 0 && ::gettid() == ::getpid()) {
    armed = 0;
    throw std::bad_alloc();
  }
  void* memory = std::malloc(bytes == 0 ? 1 : bytes);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
