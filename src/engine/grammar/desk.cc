#include "engine/grammar/desk.h"

#include <pthread.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "base/check.h"

namespace sluice::engine {
namespace {

int make_event() {
  const int fd = ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  SLUICE_CHECK(fd >= 0, "eventfd: {}", std::strerror(errno));
  return fd;
}

void set_event(int fd) {
  const uint64_t one = 1;
  const ssize_t n = ::write(fd, &one, sizeof one);
  SLUICE_CHECK(n == sizeof one || errno == EAGAIN, "eventfd: {}", std::strerror(errno));
}

void clear_event(int fd) {
  uint64_t count;
  const ssize_t n = ::read(fd, &count, sizeof count);
  (void)n;  // it was not set
}

// A grammar's JSON schemas: itself, or those of its tags.
size_t schemas_in(const std::pair<GrammarKind, std::string>& grammar) {
  if (grammar.first == GrammarKind::kJsonSchema) return 1;
  if (grammar.first != GrammarKind::kStructuralTag) return 0;
  constexpr std::string_view kSchema = "\"json_schema\":";
  size_t count = 0;
  for (size_t at = 0; (at = grammar.second.find(kSchema, at)) != std::string::npos; at += kSchema.size()) ++count;
  return count;
}

}  // namespace

GrammarDesk::GrammarDesk(Compile compile, GrammarDeskOptions options)
    : compile_(std::move(compile)), options_(options), fd_(make_event()), thread_([this] { run(); }) {}

GrammarDesk::~GrammarDesk() {
  {
    const std::lock_guard lock(mu_);
    stop_ = true;
  }
  changed_.notify_all();
  thread_.join();
  ::close(fd_);
}

void GrammarDesk::add(GenerateRequest request) {
  const std::lock_guard lock(mu_);
  ++counts_.requests;
  ++waiting_.requests;
  waiting_.tokens += std::ssize(request.input_ids);
  Key key{request.sampling.grammar_kind, request.sampling.grammar};
  if (const auto kept = kept_.find(key); kept != kept_.end()) {
    ++counts_.cache_hits;
    used_.splice(used_.begin(), used_, kept->second.place);
    return give(std::move(request), kept->second.grammar);
  }
  if (held_count_ >= options_.max_waiting) {
    return give(std::move(request), Error{ErrorCode::kUnavailable,
                                          fmt::format("{} requests wait for their grammars already", held_count_)});
  }
  ++held_count_;
  const auto [place, first] = held_.try_emplace(key);
  place->second.push_back(std::move(request));
  if (!first) return;
  queue_.push_back(std::move(key));
  changed_.notify_one();
}

// Under the lock.
void GrammarDesk::give(GenerateRequest request, Compiled grammar) {
  if (!grammar.ok()) {
    ++counts_.aborted;
    grammar =
        Error{grammar.error().code, fmt::format("{}: {}", request.sampling.grammar_field, grammar.error().message)};
  }
  ready_.push_back({std::move(request), std::move(grammar)});
  set_event(fd_);
}

std::vector<GrammarDesk::Ready> GrammarDesk::take() {
  const std::lock_guard lock(mu_);
  if (ready_.empty()) return {};
  clear_event(fd_);
  for (const Ready& ready : ready_) waiting_.tokens -= std::ssize(ready.request.input_ids);
  waiting_.requests -= std::ssize(ready_);
  return std::exchange(ready_, {});
}

std::vector<GenerateRequest> GrammarDesk::remove(const AbortRequest& which) {
  const auto wanted = [&](const GenerateRequest& request) { return which.all || request.rid == which.rid; };
  std::vector<GenerateRequest> out;
  const std::lock_guard lock(mu_);
  for (auto at = held_.begin(); at != held_.end();) {
    std::vector<GenerateRequest> rest;
    for (auto& request : at->second) (wanted(request) ? out : rest).push_back(std::move(request));
    at->second = std::move(rest);
    // Nobody wants it any more; the one that is being compiled is in no queue.
    const bool goes = at->second.empty() && std::erase(queue_, at->first) > 0;
    at = goes ? held_.erase(at) : std::next(at);
  }
  held_count_ -= out.size();
  std::vector<Ready> rest;
  for (auto& ready : ready_) {
    if (wanted(ready.request)) {
      out.push_back(std::move(ready.request));
    } else {
      rest.push_back(std::move(ready));
    }
  }
  ready_ = std::move(rest);
  if (ready_.empty()) clear_event(fd_);
  for (const auto& request : out) waiting_.tokens -= std::ssize(request.input_ids);
  waiting_.requests -= std::ssize(out);
  counts_.aborted += out.size();
  return out;
}

GrammarDesk::Waiting GrammarDesk::waiting() {
  const std::lock_guard lock(mu_);
  return waiting_;
}

GrammarCounts GrammarDesk::counts() {
  const std::lock_guard lock(mu_);
  return counts_;
}

void GrammarDesk::run() {
  pthread_setname_np(pthread_self(), "grammar");
  std::unique_lock lock(mu_);
  for (;;) {
    changed_.wait(lock, [this] { return stop_ || !queue_.empty(); });
    if (stop_) return;
    const Key key = queue_.front();
    queue_.pop_front();
    lock.unlock();
    const TimePoint begun = real_clock().now();
    Compiled grammar = compile_(key.first, key.second);
    const double took = seconds(real_clock().now() - begun);
    lock.lock();
    counts_.compile_seconds.observe(kGrammarSeconds, took);
    counts_.schemas.observe(kGrammarSchemas, static_cast<double>(schemas_in(key)));
    if (key.first == GrammarKind::kEbnf) counts_.ebnf_bytes.observe(kEbnfBytes, static_cast<double>(key.second.size()));
    counts_.timeouts += !grammar.ok() && grammar.error().code == ErrorCode::kTimeout;
    const auto held = held_.extract(key);
    for (auto& request : held.mapped()) {
      --held_count_;
      give(std::move(request), grammar);
    }
    // That there was no process to compile it says nothing about the grammar.
    if (grammar.ok() || grammar.error().code != ErrorCode::kUnavailable) keep(key, std::move(grammar));
  }
}

// Under the lock.
void GrammarDesk::keep(const Key& key, Compiled grammar) {
  const size_t bytes = key.second.size() + (grammar.ok() ? (*grammar)->bytes() : 0);
  const auto [place, is_new] = kept_.try_emplace(key, Kept{std::move(grammar), bytes, {}});
  if (!is_new) return;
  used_.push_front(&place->first);
  place->second.place = used_.begin();
  kept_bytes_ += bytes;
  while (kept_.size() > 1 && (kept_.size() > options_.cached_grammars || kept_bytes_ > options_.cached_bytes)) {
    const auto oldest = kept_.find(*used_.back());
    kept_bytes_ -= oldest->second.bytes;
    used_.pop_back();
    kept_.erase(oldest);
  }
}

}  // namespace sluice::engine
