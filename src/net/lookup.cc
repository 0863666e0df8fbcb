#include "net/lookup.h"

#include <netdb.h>

#include <atomic>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <thread>

#include "net/stream.h"

namespace sluice::net {
namespace {

constexpr Duration kPatience = std::chrono::seconds(1);  // with a resolver, where older addresses are known

// Blocks for as long as the system's resolver wants.
Result<Addresses> resolve(const std::string& host) {
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* list = nullptr;
  if (const int error = ::getaddrinfo(host.c_str(), nullptr, &hints, &list); error != 0) {
    return Error{ErrorCode::kNotFound, ::gai_strerror(error)};
  }
  Addresses addresses;
  for (const addrinfo* at = list; at != nullptr; at = at->ai_next) {
    if (at->ai_family == AF_INET) {
      sockaddr_in v4{};
      std::memcpy(&v4, at->ai_addr, sizeof v4);
      addresses.emplace_back(asio::ip::address_v4(ntohl(v4.sin_addr.s_addr)));
    } else if (at->ai_family == AF_INET6) {
      sockaddr_in6 v6{};
      std::memcpy(&v6, at->ai_addr, sizeof v6);
      asio::ip::address_v6::bytes_type bytes;
      std::memcpy(bytes.data(), &v6.sin6_addr, bytes.size());
      addresses.emplace_back(asio::ip::address_v6(bytes, v6.sin6_scope_id));
    }
  }
  ::freeaddrinfo(list);
  return addresses;
}

// The system's resolver for one loop: a thread that begins with the first name and ends with the loop's context. One
// name after the other.
class Resolver final : public asio::execution_context::service {
 public:
  using key_type = Resolver;
  static inline asio::execution_context::id id;
  using Done = std::function<void(Result<Addresses>)>;

  explicit Resolver(asio::execution_context& context) : service(context) {}

  // `done` runs on the loop, or never if that ends before. What nobody wants any more when its turn comes (`wanted`, on
  // the resolver's thread) is not looked up: it would hold up others.
  void ask(EventLoop& loop, std::string host, std::function<bool()> wanted, Done done) {
    const std::lock_guard lock(mutex_);
    asked_.push_back({&loop, std::move(host), std::move(wanted), std::move(done)});
    if (!thread_.joinable()) thread_ = std::thread([this] { run(); });
    wake_.notify_one();
  }
  void shutdown() override {
    {
      const std::lock_guard lock(mutex_);
      stop_ = true;
    }
    wake_.notify_one();
    if (thread_.joinable()) thread_.join();
    asked_.clear();
  }

 private:
  struct Asked {
    EventLoop* loop;
    std::string host;
    std::function<bool()> wanted;
    Done done;
  };
  void run() {
    std::unique_lock lock(mutex_);
    for (;;) {
      wake_.wait(lock, [&] { return stop_ || !asked_.empty(); });
      if (stop_) return;
      Asked next = std::move(asked_.front());
      asked_.pop_front();
      lock.unlock();
      auto found = next.wanted() ? resolve(next.host) : Result<Addresses>(Error{ErrorCode::kCancelled, "cancelled"});
      next.loop->post([done = std::move(next.done), found = std::move(found)]() mutable { done(std::move(found)); });
      lock.lock();
    }
  }

  std::mutex mutex_;  // guards what follows
  std::condition_variable wake_;
  std::deque<Asked> asked_;
  bool stop_ = false;
  std::thread thread_;
};

}  // namespace

struct NameCache::Question {
  Question(EventLoop& asking) : loop(asking), timer(loop.executor()) {}

  EventLoop& loop;
  Timer timer;
  Waiter waiter;
};

struct NameCache::Name {
  Addresses addresses;  // the last that were found
  TimePoint found_at{};
  std::optional<Error> error;  // of the last look-up
  bool asked = false;          // a look-up is under way; all who wait share it
  std::vector<std::shared_ptr<Question>> waiting;
};

// Shared with the look-ups under way, which may end after the cache.
struct NameCache::State {
  State(EventLoop& l, Lookup f, Duration how_long) : loop(l), lookup(std::move(f)), fresh(how_long) {}

  void ask(std::shared_ptr<State> self, const std::string& host, std::function<void(Result<Addresses>)> done);

  EventLoop& loop;
  const Lookup lookup;
  const Duration fresh;
  std::atomic<bool> closed{false};  // the cache has gone
  std::map<std::string, Name, std::less<>> names;
};

void NameCache::State::ask(std::shared_ptr<State> self, const std::string& host,
                           std::function<void(Result<Addresses>)> done) {
  if (lookup) {
    lookup(host, std::move(done));
    return;
  }
  auto& resolver = asio::use_service<Resolver>(loop.context());
  // `self` ends on the loop, with `done`, which runs later than `wanted`.
  resolver.ask(
      loop, host, [&its = *this] { return !its.closed; },
      [self = std::move(self), done = std::move(done)](Result<Addresses> found) {
        done(self->closed ? Result<Addresses>(Error{ErrorCode::kCancelled, "cancelled"}) : std::move(found));
      });
}

NameCache::NameCache(EventLoop& loop, Lookup lookup, Duration fresh)
    : state_(std::make_shared<State>(loop, std::move(lookup), fresh)) {}

NameCache::~NameCache() { state_->closed = true; }

void NameCache::cancel(Question& question) { question.waiter.wake_later(question.loop.executor(), Io::kCancelled); }

Task<Result<Addresses>> NameCache::find(const std::string& host, TimePoint deadline, std::shared_ptr<Question>* asked) {
  boost::system::error_code not_literal;
  const auto literal = asio::ip::make_address(host, not_literal);
  if (!not_literal) co_return Addresses{literal};
  const auto state = state_;
  Name& name = state->names[host];  // entries stay where they are
  const TimePoint begun = std::chrono::steady_clock::now();
  if (!name.addresses.empty() && begun - name.found_at < state->fresh) co_return name.addresses;

  auto question = std::make_shared<Question>(state->loop);
  name.waiting.push_back(question);
  if (!std::exchange(name.asked, true)) {
    state->ask(state, host, [state, &name](Result<Addresses> found) {
      name.asked = false;
      name.error = found.ok() ? std::nullopt : std::optional<Error>(found.error());
      if (found.ok() && !found->empty()) {
        name.addresses = std::move(found).value();
        name.found_at = std::chrono::steady_clock::now();
      }
      for (const auto& waiting : std::exchange(name.waiting, {})) {
        waiting->timer.cancel();
        waiting->waiter.wake_later(state->loop.executor(), Io::kOk);
      }
    });
  }
  Io io = Io::kOk;
  if (std::ranges::find(name.waiting, question) != name.waiting.end()) {  // else it was answered at once
    if (asked != nullptr) *asked = question;
    const bool has_older = !name.addresses.empty();
    question->timer.expires_at(has_older ? std::min(deadline, begun + kPatience) : deadline);
    question->timer.async_wait([question](const boost::system::error_code& error) {
      if (!error) question->waiter.wake_now(Io::kTimeout);
    });
    io = co_await question->waiter.wait();
    if (asked != nullptr) *asked = nullptr;
    question->timer.cancel();
    std::erase(name.waiting, question);
  }
  if (io == Io::kCancelled) co_return Error{ErrorCode::kCancelled, "cancelled"};
  if (!name.addresses.empty()) co_return name.addresses;
  if (io == Io::kTimeout) co_return Error{ErrorCode::kTimeout, "the resolver did not answer"};
  co_return name.error.value_or(Error{ErrorCode::kNotFound, "it has no address"});
}

}  // namespace sluice::net
