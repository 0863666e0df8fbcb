#include "net/lookup.h"

#include <boost/asio/ip/tcp.hpp>
#include <map>

#include "net/stream.h"

namespace sluice::net {
namespace {

constexpr Duration kPatience = std::chrono::seconds(1);  // with a resolver, where older addresses are known

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
  State(EventLoop& l, Lookup f, Duration how_long)
      : loop(l), lookup(std::move(f)), fresh(how_long), resolver(loop.executor()) {}

  void ask(std::shared_ptr<State> self, const std::string& host, std::function<void(Result<Addresses>)> done);

  EventLoop& loop;
  const Lookup lookup;
  const Duration fresh;
  asio::ip::basic_resolver<asio::ip::tcp, Executor> resolver;  // its look-ups run in a thread of Asio's
  std::map<std::string, Name, std::less<>> names;
};

void NameCache::State::ask(std::shared_ptr<State> self, const std::string& host,
                           std::function<void(Result<Addresses>)> done) {
  if (lookup) {
    lookup(host, std::move(done));
    return;
  }
  using Resolver = asio::ip::basic_resolver<asio::ip::tcp, Executor>;
  resolver.async_resolve(host, "", Resolver::numeric_service,
                         [self = std::move(self), done = std::move(done)](const boost::system::error_code& error,
                                                                          const Resolver::results_type& results) {
                           if (error) {
                             done(Error{ErrorCode::kNotFound, error.message()});
                             return;
                           }
                           Addresses addresses;
                           for (const auto& entry : results) addresses.push_back(entry.endpoint().address());
                           done(std::move(addresses));
                         });
}

NameCache::NameCache(EventLoop& loop, Lookup lookup, Duration fresh)
    : state_(std::make_shared<State>(loop, std::move(lookup), fresh)) {}

NameCache::~NameCache() { state_->resolver.cancel(); }

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
