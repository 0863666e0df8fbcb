#include "engine/kv_publisher.h"

#include <gtest/gtest.h>
#include <unistd.h>
#include <zmq.h>

#include <optional>

#include "testing/fake_clock.h"

namespace sluice::engine {
namespace {

using protocol::KvEvent;

// ---- configuration

TEST(KvEventsConfigTest, ReadsEveryMember) {
  const auto config = parse_kv_events_config(
      R"({"publisher":"zmq","endpoint":"tcp://*:6000","replay_endpoint":"ipc:///tmp/r","topic":"kv","buffer_steps":5,
          "hwm":6,"max_queue_size":7})");
  ASSERT_TRUE(config.ok()) << config.error().message;
  EXPECT_TRUE(config->enabled);
  EXPECT_EQ(config->endpoint, "tcp://*:6000");
  EXPECT_EQ(config->replay_endpoint, "ipc:///tmp/r");
  EXPECT_EQ(config->topic, "kv");
  EXPECT_EQ(config->buffer_steps, 5);
  EXPECT_EQ(config->hwm, 6);
  EXPECT_EQ(config->max_queue_size, 7);
  const auto defaults = parse_kv_events_config("{}");
  EXPECT_FALSE(defaults->enabled) << "publisher is null";
  EXPECT_EQ(defaults->endpoint, "tcp://*:5557");
  EXPECT_EQ(defaults->buffer_steps, 10'000);
}

TEST(KvEventsConfigTest, NamesWhatIsWrong) {
  for (const auto& [text, needle] : std::vector<std::pair<std::string, std::string>>{
           {"zmq", "JSON object"},
           {R"({"publisher":"kafka"})", "\"null\" or \"zmq\""},
           {R"({"endpoint":5557})", "endpoint must be a string"},
           {R"({"hwm":0})", "hwm must be an integer of 1"},
           {R"({"buffer":5})", "buffer is no member"},
           {R"({"endpoint":"inproc://x"})", "tcp:// or ipc://"},
           {R"({"endpoint":"tcp://*"})", "must end in a port"},
           {R"({"replay_endpoint":"tcp://*:65535"})", "must end in a port"}}) {
    const auto config = parse_kv_events_config(text);
    ASSERT_FALSE(config.ok()) << text;
    EXPECT_EQ(config.error().code, ErrorCode::kBadOption);
    EXPECT_NE(config.error().message.find(needle), std::string::npos) << config.error().message;
  }
}

TEST(KvEventsConfigTest, EachRankHasAnEndpointOfItsOwn) {
  EXPECT_EQ(*kv_endpoint_of_rank("tcp://*:5557", 0), "tcp://*:5557");
  EXPECT_EQ(*kv_endpoint_of_rank("tcp://*:5557", 3), "tcp://*:5560");
  EXPECT_EQ(*kv_endpoint_of_rank("ipc:///tmp/kv", 3), "ipc:///tmp/kv_dp3");
  EXPECT_EQ(*kv_endpoint_of_rank("inproc://kv", 2), "inproc://kv_dp2");
  EXPECT_EQ(*kv_endpoint_of_rank("", 2), "");
}

TEST(KvEventsConfigTest, AnotherServerOfTheHostComesAfterTheRanksOfTheFirst) {
  EXPECT_EQ(*kv_events_config_after(R"({"publisher":"zmq"})", 4), R"({"publisher":"zmq","endpoint":"tcp://*:5561"})");
  EXPECT_EQ(*kv_events_config_after(R"({"endpoint":"tcp://*:1","replay_endpoint":"ipc:///r"})", 2),
            R"({"endpoint":"tcp://*:3","replay_endpoint":"ipc:///r_dp2"})");
  EXPECT_FALSE(kv_events_config_after("{}", 65535).ok());
}

// ---- publisher, over real sockets

class KvPublisherTest : public ::testing::Test {
 protected:
  ~KvPublisherTest() override {
    publisher_.reset();
    for (void* socket : sockets_) zmq_close(socket);
    zmq_ctx_term(context_);
  }

  void open(KvEventsConfig config, int64_t rank = 2) {
    config.endpoint = fmt::format("ipc://@sluice-kv-test-{}-{}", getpid(), count_);
    config.replay_endpoint = fmt::format("ipc://@sluice-kv-test-replay-{}-{}", getpid(), count_++);
    auto opened = KvPublisher::open(config, rank, clock_);
    ASSERT_TRUE(opened.ok()) << opened.error().message;
    publisher_ = std::move(*opened);
  }
  void* connect(int type, const std::string& to) {
    void* socket = zmq_socket(context_, type);
    const int wait = 10'000, linger = 0;
    zmq_setsockopt(socket, ZMQ_RCVTIMEO, &wait, sizeof(wait));
    zmq_setsockopt(socket, ZMQ_LINGER, &linger, sizeof(linger));
    if (type == ZMQ_SUB) zmq_setsockopt(socket, ZMQ_SUBSCRIBE, "", 0);
    EXPECT_EQ(zmq_connect(socket, to.c_str()), 0) << zmq_strerror(zmq_errno());
    sockets_.push_back(socket);
    return socket;
  }
  static std::vector<std::string> receive(void* socket) {
    std::vector<std::string> frames;
    for (int more = 1; more != 0;) {
      zmq_msg_t frame;
      zmq_msg_init(&frame);
      if (zmq_msg_recv(&frame, socket, 0) < 0) {
        ADD_FAILURE() << zmq_strerror(zmq_errno());
        return {};
      }
      frames.emplace_back(static_cast<const char*>(zmq_msg_data(&frame)), zmq_msg_size(&frame));
      more = zmq_msg_more(&frame);
      zmq_msg_close(&frame);
    }
    return frames;
  }
  static uint64_t number(const std::string& frame) {
    EXPECT_EQ(frame.size(), 8u);
    uint64_t value = 0;
    for (const char byte : frame) value = value << 8 | static_cast<uint8_t>(byte);
    return value;
  }
  // Sequences and payloads from `from` on, as a client that asks for them.
  std::vector<std::pair<uint64_t, protocol::KvEventBatch>> replay(uint64_t from) {
    void* socket = connect(ZMQ_DEALER, publisher_->replay_endpoint());
    std::string start(8, '\0');
    for (size_t i = 0; i < 8; ++i) start[i] = static_cast<char>(from >> (56 - 8 * i));
    zmq_send(socket, "", 0, ZMQ_SNDMORE);
    zmq_send(socket, start.data(), start.size(), 0);
    std::vector<std::pair<uint64_t, protocol::KvEventBatch>> out;
    for (;;) {
      const auto frames = receive(socket);
      if (frames.size() != 3) {
        ADD_FAILURE() << frames.size() << " frames";
        return out;
      }
      EXPECT_EQ(frames[0], "");
      if (number(frames[1]) == ~uint64_t{0}) {
        EXPECT_EQ(frames[2], "");
        return out;
      }
      out.emplace_back(number(frames[1]), *protocol::decode_kv_events(frames[2]));
    }
  }
  static KvEvent stored(int32_t token) {
    return {.kind = KvEvent::Kind::kStored,
            .hashes = {static_cast<uint64_t>(token)},
            .token_ids = {token},
            .block_size = 1,
            .medium = "GPU"};
  }

  testing::FakeClock clock_;
  void* const context_ = zmq_ctx_new();
  std::vector<void*> sockets_;
  std::unique_ptr<KvPublisher> publisher_;
  int count_ = 0;
};

TEST_F(KvPublisherTest, ReplaysWhatItSentInOrderAndBeginsWithAnEmptyCache) {
  open({.buffer_steps = 3});
  for (int32_t i = 1; i <= 4; ++i) publisher_->publish({stored(i)});
  // Requests may overtake what the thread has not sent yet, so ask until the newest is there.
  std::vector<std::pair<uint64_t, protocol::KvEventBatch>> all;
  while (all.empty() || all.back().first < 4) all = replay(0);
  ASSERT_EQ(all.size(), 3u) << "buffer_steps";
  EXPECT_EQ(all[0].first, 2u);
  EXPECT_EQ(all[2].second.events[0].token_ids, std::vector<int32_t>{4});
  EXPECT_EQ(all[2].second.dp_rank, 2);
  EXPECT_NEAR(all[2].second.timestamp, static_cast<double>(clock_.unix_nanos()) * 1e-9, 1e-3);
  EXPECT_EQ(replay(4).size(), 1u);
  EXPECT_TRUE(replay(5).empty());

  open({});
  auto first = replay(0);
  while (first.empty()) first = replay(0);
  EXPECT_EQ(first[0].first, 0u);
  EXPECT_EQ(first[0].second.events[0].kind, KvEvent::Kind::kCleared);
}

TEST_F(KvPublisherTest, SubscribersGetTopicNumberAndPayload) {
  open({.topic = "kv"});
  void* socket = connect(ZMQ_SUB, publisher_->endpoint());
  // A subscription takes a moment to reach the publisher: publish until something arrives.
  zmq_pollitem_t item{.socket = socket, .fd = 0, .events = ZMQ_POLLIN, .revents = 0};
  int32_t sent = 0;
  while (zmq_poll(&item, 1, 1) == 0 && sent < 100'000) publisher_->publish({stored(++sent)});
  auto frames = receive(socket);
  ASSERT_EQ(frames.size(), 3u);
  EXPECT_EQ(frames[0], "kv");
  if (number(frames[1]) == 0) {  // that the cache is empty
    publisher_->publish({stored(++sent)});
    frames = receive(socket);
    ASSERT_EQ(frames.size(), 3u);
  }
  const auto batch = protocol::decode_kv_events(frames[2]);
  ASSERT_TRUE(batch.ok());
  EXPECT_EQ(static_cast<uint64_t>(batch->events[0].token_ids[0]), number(frames[1])) << "one number per message";
}

TEST_F(KvPublisherTest, ARequestThatIsNoneIsDropped) {
  open({});
  void* socket = connect(ZMQ_DEALER, publisher_->replay_endpoint());
  zmq_send(socket, "hello", 5, 0);
  auto all = replay(0);
  while (all.empty()) all = replay(0);
  EXPECT_EQ(all[0].first, 0u) << "it still answers";
}

TEST_F(KvPublisherTest, AnEndpointThatIsTakenIsNamed) {
  open({});
  const auto second = KvPublisher::open({.enabled = true, .endpoint = publisher_->endpoint()}, 0, clock_);
  ASSERT_FALSE(second.ok());
  EXPECT_EQ(second.error().code, ErrorCode::kUnavailable);
  EXPECT_NE(second.error().message.find(publisher_->endpoint()), std::string::npos) << second.error().message;
}

}  // namespace
}  // namespace sluice::engine
