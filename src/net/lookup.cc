#include "net/lookup.h"

#include <netdb.h>

#include <atomic>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <optional>
#include <thread>

#include "net/stream.h"

namespace sluice::net {
namespace {

// With a resolver, where older addresses are known; and no more than this share of the time to connect in.
constexpr Duration kPatience = std::chrono::seconds(1);
constexpr int kPatienceShare = 4;

// Blocks for as long as the system's resolver wants. kNotFound: there is no such name, or it has no address;
// kUnavailable: the resolver does not know.
Result<Addresses> resolve(const std::string& host) {
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* list = nullptr;
  if (const int error = ::getaddrinfo(host.c_str(), nullptr, &hints, &list); error != 0) {
    const bool is_known = error == EAI_NONAME || error == EAI_NODATA;
    return Error{is_known ? ErrorCode::kNotFound : ErrorCode::kUnavailable, ::gai_strerror(error)};
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

// The system's resolver for one loop: a thread that begins with the first name. One name after the other. What it looks
// up when the loop's context ends cannot be ended: the thread is left to it, and nobody hears what comes of it.
class Resolver final : public asio::execution_context::service {
 public:
  using key_type = Resolver;
  static inline asio::execution_context::id id;
  using Done = std::function<void(Result<Addresses>)>;

  explicit Resolver(asio::execution_context& context) : service(context) {}

  // `done` runs on the loop, or never if that ends before. What nobody wants any more when its turn comes (`wanted`, on
  // the resolver's thread) is not looked up: it would hold up others.
  void ask(EventLoop& loop, std::string host, std::function<bool()> wanted, Done done) {
    const std::lock_guard lock(shared_->mutex);
    shared_->asked.push_back({&loop, std::move(host), std::move(wanted), std::move(done)});
    if (!std::exchange(begun_, true)) std::thread([shared = shared_] { run(*shared); }).detach();
    shared_->wake.notify_one();
  }
  void shutdown() override {
    const std::lock_guard lock(shared_->mutex);
    shared_->stop = true;
    shared_->asked.clear();
    shared_->current.reset();
    shared_->wake.notify_one();
  }

 private:
  struct Asked {
    EventLoop* loop;
    std::string host;
    std::function<bool()> wanted;
    Done done;
  };
  struct Shared {
    std::mutex mutex;  // guards what follows
    std::condition_variable wake;
    std::deque<Asked> asked;
    std::optional<Asked> current;
    bool stop = false;
  };
  static void run(Shared& shared) {
    std::unique_lock lock(shared.mutex);
    for (;;) {
      shared.wake.wait(lock, [&] { return shared.stop || !shared.asked.empty(); });
      if (shared.stop) return;
      shared.current = std::move(shared.asked.front());
      shared.asked.pop_front();
      Result<Addresses> found = Error{ErrorCode::kCancelled, "cancelled"};
      if (shared.current->wanted()) {
        const std::string host = shared.current->host;
        lock.unlock();
        found = resolve(host);
        lock.lock();
        if (shared.stop) return;
      }
      shared.current->loop->post(
          [done = std::move(shared.current->done), found = std::move(found)]() mutable { done(std::move(found)); });
      shared.current.reset();
    }
  }

  const std::shared_ptr<Shared> shared_ = std::make_shared<Shared>();
  bool begun_ = false;  // under the same lock
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
  TimePoint asked_at{};
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
    name.asked_at = begun;
    state->ask(state, host, [state, &name](Result<Addresses> found) {
      name.asked = false;
      name.error = found.ok() ? std::nullopt : std::optional<Error>(found.error());
      if (found.ok() && !found->empty()) {
        name.addresses = std::move(found).value();
        name.found_at = std::chrono::steady_clock::now();
      } else if (name.error && name.error->code == ErrorCode::kNotFound) {
        name.addresses.clear();  // who has the old one now is somebody else
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
    const Duration patience = std::min<Duration>(kPatience, (deadline - begun) / kPatienceShare);
    question->timer.expires_at(has_older ? std::min(deadline, name.asked_at + patience) : deadline);
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
