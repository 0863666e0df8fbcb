#include "engine/grammar/process.h"

#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <nlohmann/json.hpp>
#include <optional>

#include "engine/tokenizer_files.h"

namespace sluice::engine {
namespace {

constexpr const char* kSocketVariable = "SLUICE_GRAMMAR_FD";
// Loading a large vocabulary and sorting it.
constexpr Duration kStartTimeout = std::chrono::seconds(60);
constexpr rlim_t kMemoryBytes = rlim_t{2} << 30;  // beside the vocabulary's
constexpr uint64_t kMaxFrame = uint64_t{1} << 30;

// Waits until the socket can be read or written. False: the time is over, or the other side is gone.
bool wait_for(int fd, short events, std::optional<TimePoint> deadline) {
  for (;;) {
    int millis = -1;
    if (deadline) {
      const Duration left = *deadline - real_clock().now();
      if (left <= Duration{0}) return false;
      millis = static_cast<int>(std::chrono::ceil<std::chrono::milliseconds>(left).count());
    }
    pollfd entry{fd, events, 0};
    const int n = ::poll(&entry, 1, millis);
    if (n > 0) return true;
    if (n < 0 && errno != EINTR) return false;
  }
}

bool write_all(int fd, const char* data, size_t size, std::optional<TimePoint> deadline) {
  while (size > 0) {
    const ssize_t n = ::send(fd, data, size, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n > 0) {
      data += n;
      size -= static_cast<size_t>(n);
    } else if (errno == EAGAIN) {
      if (!wait_for(fd, POLLOUT, deadline)) return false;
    } else if (errno != EINTR) {
      return false;
    }
  }
  return true;
}

bool read_all(int fd, char* data, size_t size, std::optional<TimePoint> deadline) {
  while (size > 0) {
    if (!wait_for(fd, POLLIN, deadline)) return false;
    const ssize_t n = ::recv(fd, data, size, MSG_DONTWAIT);
    if (n == 0) return false;
    if (n > 0) {
      data += n;
      size -= static_cast<size_t>(n);
    } else if (errno != EAGAIN && errno != EINTR) {
      return false;
    }
  }
  return true;
}

bool write_frame(int fd, const std::string& frame, std::optional<TimePoint> deadline = {}) {
  const uint64_t size = frame.size();
  return write_all(fd, reinterpret_cast<const char*>(&size), sizeof size, deadline) &&
         write_all(fd, frame.data(), frame.size(), deadline);
}

std::optional<std::string> read_frame(int fd, std::optional<TimePoint> deadline = {}) {
  uint64_t size = 0;
  if (!read_all(fd, reinterpret_cast<char*>(&size), sizeof size, deadline) || size > kMaxFrame) return std::nullopt;
  std::string frame(size, '\0');
  if (!read_all(fd, frame.data(), frame.size(), deadline)) return std::nullopt;
  return frame;
}

std::string answer(const Result<std::string>& result) {
  return result.ok() ? '\1' + *result : '\0' + result.error().message;
}

Result<std::unique_ptr<GrammarBackend>> make_backend(const std::string& text) {
  const auto json = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  const GrammarProcessSpec spec{.backend = json.value("backend", ""),
                                .tokenizer_file = json.value("tokenizer_file", ""),
                                .vocab_size = json.value("vocab_size", int64_t{0}),
                                .stop_ids = json.value("stop_ids", std::vector<int32_t>())};
  const GrammarBackendRow* row = find_grammar_backend(spec.backend);
  if (row == nullptr || row->make == nullptr) return Error{ErrorCode::kBadOption, "no grammar backend"};
  SLUICE_TRY(const auto tokenizer, load_tokenizer(spec.tokenizer_file));
  return row->make(grammar_vocabulary(*tokenizer, spec));
}

// Memory that a grammar asks for beyond this is refused where it is asked for, and the grammar with it.
void limit_memory() {
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)  // their shadow is larger than any limit
  const rlimit limit{kMemoryBytes, kMemoryBytes};
  ::setrlimit(RLIMIT_DATA, &limit);
#endif
}

}  // namespace

GrammarVocabulary grammar_vocabulary(const tokenizer::Tokenizer& tokenizer, const GrammarProcessSpec& spec) {
  GrammarVocabulary out{.tokens = std::vector<std::string>(static_cast<size_t>(spec.vocab_size)),
                        .stop_ids = spec.stop_ids};
  for (int32_t id = 0; id < spec.vocab_size && id < tokenizer.vocab_size(); ++id) {
    if (!tokenizer.is_special(id)) out.tokens[static_cast<size_t>(id)] = tokenizer.token_bytes(id);
  }
  return out;
}

GrammarProcess::GrammarProcess(GrammarProcessSpec spec) : spec_(std::move(spec)) {}
GrammarProcess::~GrammarProcess() { stop(); }

void GrammarProcess::stop() {
  process_.reset();  // kills it
  if (socket_ >= 0) ::close(socket_);
  socket_ = -1;
}

Result<void> GrammarProcess::start() {
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) {
    return Error{ErrorCode::kUnavailable, fmt::format("no grammar can be compiled: {}", std::strerror(errno))};
  }
  socket_ = ends[0];
  ProcessOptions options;
  options.program = own_executable();
  options.arguments = {"grammar"};
  options.descriptors = {{kSocketVariable, ends[1]}};
  options.stdout_to_stderr = true;
  auto process = Process::start(options);
  ::close(ends[1]);
  if (!process.ok()) {
    stop();
    return Error{ErrorCode::kUnavailable, process.error().message};
  }
  process_ = std::make_unique<Process>(std::move(*process));
  const TimePoint deadline = real_clock().now() + kStartTimeout;
  const std::string spec = nlohmann::json{
      {"backend", spec_.backend},
      {"tokenizer_file", spec_.tokenizer_file},
      {"vocab_size", spec_.vocab_size},
      {"stop_ids",
       spec_.stop_ids}}.dump();
  std::optional<std::string> ready;
  if (write_frame(socket_, spec, deadline)) ready = read_frame(socket_, deadline);
  if (ready && *ready == "\1") return {};
  const std::string cause = ready && ready->size() > 1 ? ready->substr(1) : "it did not start";
  stop();
  return Error{ErrorCode::kUnavailable, fmt::format("the process that compiles grammars: {}", cause)};
}

Result<std::string> GrammarProcess::compile(GrammarKind kind, const std::string& text, Duration at_most) {
  // Twice at most: who kills the process from outside, the kernel for want of memory say, says nothing of the grammar.
  for (bool again = false;; again = true) {
    if (process_ && process_->poll()) stop();  // it has ended since it was needed last
    if (!process_) SLUICE_TRY_VOID(start());
    const TimePoint deadline = real_clock().now() + at_most;
    std::optional<std::string> reply;
    if (write_frame(socket_, static_cast<char>(kind) + text, deadline)) reply = read_frame(socket_, deadline);
    if (reply && !reply->empty()) {
      if (reply->front() == '\1') return reply->substr(1);
      return Error{ErrorCode::kInvalidArgument, reply->substr(1)};
    }
    const bool late = real_clock().now() >= deadline;
    const auto status = late ? std::nullopt : process_->wait(std::chrono::seconds(1));
    stop();
    if (late) {
      return Error{ErrorCode::kTimeout,
                   fmt::format("compiling it takes longer than the {:.0f} s that it may take", seconds(at_most))};
    }
    const std::string end = status ? status->to_string() : "it closed its socket";
    if (!status || (status->signal != SIGKILL && status->signal != SIGTERM)) {
      return Error{ErrorCode::kInvalidArgument, fmt::format("compiling it is too much for the compiler ({})", end)};
    }
    if (again) return Error{ErrorCode::kUnavailable, fmt::format("the process that compiles grammars was {}", end)};
  }
}

std::function<Result<std::shared_ptr<const Grammar>>(GrammarKind, const std::string&)> grammar_compiler(
    GrammarProcessSpec spec, std::shared_ptr<const tokenizer::Tokenizer> tokenizer, Duration at_most) {
  struct Compiler {
    Compiler(GrammarProcessSpec s, std::shared_ptr<const tokenizer::Tokenizer> t)
        : spec(std::move(s)), tokenizer(std::move(t)) {}
    const GrammarProcessSpec spec;
    const std::shared_ptr<const tokenizer::Tokenizer> tokenizer;
    GrammarProcess process{spec};
    std::unique_ptr<GrammarBackend> loader;  // made when it is first needed
  };
  auto compiler = std::make_shared<Compiler>(std::move(spec), std::move(tokenizer));
  return [compiler, at_most](GrammarKind kind, const std::string& text) -> Result<std::shared_ptr<const Grammar>> {
    SLUICE_TRY(const auto compiled, compiler->process.compile(kind, text, at_most));
    if (!compiler->loader) {
      const GrammarBackendRow* row = find_grammar_backend(compiler->spec.backend);
      SLUICE_TRY(compiler->loader, row->make(grammar_vocabulary(*compiler->tokenizer, compiler->spec)));
    }
    return compiler->loader->load(compiled);
  };
}

int run_grammar_process() {
  std::signal(SIGINT, SIG_IGN);
  const auto fd = inherited_descriptor(kSocketVariable);
  if (!fd) {
    std::fprintf(stderr, "sluice grammar: this command is started by a rank of `sluice server`, not by hand\n");
    return 1;
  }
  const auto spec = read_frame(*fd);
  if (!spec) return 1;
  const auto backend = make_backend(*spec);
  if (!backend.ok()) {
    write_frame(*fd, answer(backend.error()));
    return 1;
  }
  if (!write_frame(*fd, answer(std::string()))) return 1;
  limit_memory();
  while (const auto grammar = read_frame(*fd)) {
    if (grammar->empty()) return 1;
    const auto compiled = (*backend)->compile(static_cast<GrammarKind>(grammar->front()), grammar->substr(1));
    if (!write_frame(*fd, answer(compiled))) return 1;
  }
  return 0;
}

}  // namespace sluice::engine
