// Preloaded into a server: after SIGRTMIN + 5 the next allocation of the process's first thread fails, as if there were
// no memory, wherever it is. With SLUICE_TEST_FAILING_ALLOCATION=n the n-th of each rank's does.
#include <csignal>
#include <cstdlib>
#include <new>

#include <unistd.h>

namespace {

volatile std::sig_atomic_t armed = 0;
long left = 0;

void arm(int) { armed = 1; }

__attribute__((constructor)) void listen() {
  std::signal(SIGRTMIN + 5, arm);
  const char* number = std::getenv("SLUICE_TEST_FAILING_ALLOCATION");
  if (number != nullptr && std::getenv("SLUICE_RANK_SPEC_FD") != nullptr) left = std::atol(number);
}

bool fails() {
  if (armed == 0 && left == 0) return false;
  if (::gettid() != ::getpid()) return false;
  if (armed == 0 && --left > 0) return false;
  armed = 0;
  left = 0;
  return true;
}

}  // namespace

void* operator new(std::size_t bytes) {
  if (fails()) throw std::bad_alloc();
  void* memory = std::malloc(bytes == 0 ? 1 : bytes);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
