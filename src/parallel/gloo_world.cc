#include "parallel/gloo_world.h"

#include <fmt/format.h>
#include <pthread.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "base/pulse.h"

namespace sluice::parallel {
namespace {

using std::chrono::milliseconds;

constexpr uint64_t kTag = 1;  // of messages beside the calls; groups have their own
constexpr size_t kTextBytes = 2000;
constexpr size_t kUnread = 8;  // messages to a rank that may be under way
// gloo closes all connections when a wait of its own is over in time, so we watch the time ourselves.
constexpr milliseconds kForEver = std::chrono::hours(24 * 365);

}  // namespace

struct GlooWorld::Message {
  int32_t rank = 0;
  uint32_t failed = 0;
  uint32_t heard = 0;  // messages of the rank that this one is for
  Place place;
  int32_t code = 0;
  uint32_t text_bytes = 0;
  std::array<char, kTextBytes> text;
};

struct GlooWorld::Sent {
  std::unique_ptr<Message> message;
  std::unique_ptr<GlooBuffer> buffer;
};

// To one rank, and from it.
struct GlooWorld::Told {
  std::deque<Sent> unread;  // as far as it has told
  uint32_t sent = 0;
  uint32_t heard = 0;
};

GlooWorld::GlooWorld(std::shared_ptr<gloo::rendezvous::Context> context, std::vector<std::string> hosts,
                     GroupOptions options, std::shared_ptr<ShmSegment> shown_in)
    : context_(std::move(context)),
      hosts_(std::move(hosts)),
      options_(std::move(options)),
      shown_in_(std::move(shown_in)),
      signs_(static_cast<size_t>(context_->size)),
      place_numbers_(signs_.size()),
      told_(signs_.size()),
      heard_(std::make_unique<Message>()) {
  for (int i = 0; i < context_->size; ++i) heard_of(i);
  if (context_->size == 1) return;
  heard_buffer_ = buffer(heard_.get(), sizeof(Message));
  hearing_ = std::thread([this] {
    ::pthread_setname_np(::pthread_self(), "sluice-hear");
    hear();
  });
  looking_ = std::thread([this] {
    ::pthread_setname_np(::pthread_self(), "sluice-look");
    look_after_waits();
  });
}

GlooWorld::~GlooWorld() {
  bool failed = false;
  {
    const std::lock_guard lock(mu_);
    stopping_ = true;
    failed = failure_.has_value();
    if (heard_buffer_) heard_buffer_->abortWaitRecv();
    changed_.notify_all();
  }
  if (hearing_.joinable()) hearing_.join();
  if (looking_.joinable()) looking_.join();
  // The reason of a failure should reach the others before the end of the connections does.
  for (size_t i = 0; failed && i < told_.size(); ++i) {
    try {
      for (Sent& sent : told_[i].unread) sent.buffer->waitSend(milliseconds(200));
    } catch (const std::exception&) {  // it is gone itself
    }
  }
}

std::string GlooWorld::whereabouts(int rank) const {
  const std::string where = to_string(last_progress(rank));
  return fmt::format("; rank {} is on {}{}{}", rank, hosts_[static_cast<size_t>(rank)],
                     where.empty() ? "" : ", last heard of in ", where);
}

std::optional<Error> GlooWorld::failure() const {
  const std::lock_guard lock(mu_);
  return failure_;
}

void GlooWorld::keep(const Error& error) {
  if (!failure_) failure_ = error;
  for (const UnderWay& each : waits_) each.abort();
  changed_.notify_all();
}

void GlooWorld::fail(const Error& error) {
  Message message{.rank = rank(), .failed = 1, .code = static_cast<int32_t>(error.code)};
  message.text_bytes = static_cast<uint32_t>(std::min(error.message.size(), kTextBytes));
  std::memcpy(message.text.data(), error.message.data(), message.text_bytes);
  {
    const std::lock_guard lock(mu_);
    if (failure_) return;
    keep(error);
  }
  broadcast(message);
}

void GlooWorld::progress(const Progress& progress) {
  const TimePoint now = options_.clock->now();
  signs_[static_cast<size_t>(rank())].seen(now, progress);
  if (shown_in_) shown_in_->sign(0).seen(now, progress);
  ++places_;
  active();
}

Place GlooWorld::place() const {
  const uint64_t number = places_;  // first: the place is this one or a later
  return {.number = number, .where = last_progress(rank())};
}

void GlooWorld::heard_of(int rank, const Place& place) {
  const auto at = static_cast<size_t>(rank);
  const std::lock_guard lock(places_mu_);
  if (place.number < place_numbers_[at]) return heard_of(rank);
  place_numbers_[at] = place.number;
  signs_[at].seen(options_.clock->now(), place.where);
}

void GlooWorld::broadcast(const Message& message) {
  const std::lock_guard lock(sent_mu_);
  for (int to = 0; to < context_->size; ++to) {
    if (to == rank()) continue;
    Told& told = told_[static_cast<size_t>(to)];
    // It stands still, or has nothing to do. Signs of life that nobody reads are not waited for, nor heaped up.
    if (!message.failed && told.unread.size() >= kUnread) continue;
    try {
      Sent next{.message = std::make_unique<Message>(message)};
      next.message->heard = told.heard;
      next.buffer = buffer(next.message.get(), sizeof(Message));
      next.buffer->send(to, kTag);
      told.unread.push_back(std::move(next));
      ++told.sent;
    } catch (const std::exception&) {  // it is gone; whoever waits for it finds out
    }
  }
}

void GlooWorld::hear() {
  std::vector<int> others;
  for (int i = 0; i < context_->size; ++i) {
    if (i != rank()) others.push_back(i);
  }
  // A connection that ends in the middle of a message ends the wait; the others go on.
  for (size_t lost = 0; lost < others.size();) {
    try {
      heard_buffer_->recv(others, kTag);
      if (!heard_buffer_->waitRecv(nullptr, kForEver)) return;  // we stop
      take(*heard_);
    } catch (const std::exception&) {
      ++lost;
      const std::lock_guard lock(mu_);
      if (stopping_) return;
      heard_buffer_ = buffer(heard_.get(), sizeof(Message));
    }
  }
}

void GlooWorld::take(const Message& message) {
  if (message.rank < 0 || message.rank >= context_->size) return;
  {
    const std::lock_guard lock(sent_mu_);
    Told& told = told_[static_cast<size_t>(message.rank)];
    ++told.heard;
    while (!told.unread.empty() && told.sent - told.unread.size() < message.heard) told.unread.pop_front();
  }
  if (!message.failed) {
    heard_of(message.rank, message.place);
    return;
  }
  const std::string_view text(message.text.data(), std::min<size_t>(message.text_bytes, kTextBytes));
  const std::lock_guard lock(mu_);
  keep({static_cast<ErrorCode>(message.code), std::string(text)});
}

void GlooWorld::active() {
  active_ = true;
  if (!parked_) return;
  const std::lock_guard lock(mu_);
  changed_.notify_all();
}

// Looks now and then while this rank does something, and sleeps while it does nothing.
void GlooWorld::look_after_waits() {
  const Duration often = std::min(options_.silence_limit / 10, options_.longest_sleep);
  TimePoint told{}, worked{};
  uint64_t beats = Pulse::own().count();
  std::unique_lock lock(mu_);
  LostTime clock;
  while (!stopping_) {
    // A long piece of work says nothing by itself: it is awaited as long as a rank may be silent.
    if (waits_.empty() && !active_ && options_.clock->now() - worked >= options_.silence_limit) {
      parked_ = true;
      changed_.wait(lock, [&] { return stopping_ || active_; });
      parked_ = false;
      clock.begin_anew();
      continue;
    }
    changed_.wait_for(lock, often, [&] { return stopping_; });
    lost_ += clock.look(often);
    const TimePoint now = options_.clock->now();
    const uint64_t count = Pulse::own().count();
    if (std::exchange(beats, count) != count) active_ = true;
    if (active_) worked = now;
    Result<void> looked;
    for (const UnderWay& each : waits_) {
      if (looked.ok() && !failure_) looked = look(each.wait, now);
    }
    // Who waits is not silent, even if others wait for it in their turn.
    const bool tell = !failure_ && (active_ || !waits_.empty()) && now - told >= options_.silence_limit / 5;
    if (tell) active_ = false;
    const Place own = place();
    lock.unlock();
    if (!looked.ok()) fail(looked.error());
    if (tell) {
      told = now;
      broadcast({.rank = rank(), .place = own});
    }
    lock.lock();
    if (failure_) active_ = false;
  }
}

Result<void> GlooWorld::look(Wait at, TimePoint now) const {
  at.lost = lost_ - at.lost;
  const auto silent = [&](std::span<const int> ranks) {
    Wait wait = at;
    wait.missing = ranks;
    return time_left(wait, signs_, now, options_.silence_limit, options_.join_limit);
  };
  if (silent(at.missing.first(1)).ok()) return {};
  std::vector<int> missing;
  for (const int rank : at.missing) {
    if (!silent(std::span(&rank, 1)).ok()) missing.push_back(rank);
  }
  std::ranges::sort(missing);
  auto error = silent(missing);
  if (error.ok()) return {};
  Error silence = std::move(error).error();
  for (const int rank : missing) silence.message += whereabouts(rank);
  return silence;
}

template <class WaitFunction, class AbortFunction>
Result<void> GlooWorld::wait_on(const Wait& wait, WaitFunction wait_function, AbortFunction abort) {
  std::list<UnderWay>::iterator own;
  {
    const std::lock_guard lock(mu_);
    if (failure_) return *failure_;
    own = waits_.insert(waits_.end(), {wait, abort});
    own->wait.lost = lost_;
  }
  std::string gone;
  try {
    wait_function();
  } catch (const std::exception& e) {
    gone = e.what();
  }
  std::unique_lock lock(mu_);
  waits_.erase(own);
  if (failure_) return *failure_;
  if (gone.empty()) return {};
  // It may have told why it ends; that comes another way.
  changed_.wait_for(lock, milliseconds(200), [&] { return failure_.has_value(); });
  if (failure_) return *failure_;
  lock.unlock();
  fail({ErrorCode::kUnavailable,
        fmt::format("group {}: rank {} has lost {} in {}: {}{}", wait.group, wait.waiting,
                    list_ranks(wait.missing.first(1)), wait.call, gone, whereabouts(wait.missing[0]))});
  return *failure();
}

Result<void> GlooWorld::wait_receive(GlooBuffer& buffer, const Wait& wait) {
  return wait_on(
      wait, [&] { buffer.waitRecv(nullptr, kForEver); }, [&buffer] { buffer.abortWaitRecv(); });
}

Result<void> GlooWorld::wait_send(GlooBuffer& buffer, const Wait& wait) {
  return wait_on(
      wait, [&] { buffer.waitSend(nullptr, kForEver); }, [&buffer] { buffer.abortWaitSend(); });
}

}  // namespace sluice::parallel
