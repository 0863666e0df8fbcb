// A bare relay on Asio coroutines and Beast's basic_parser, which owns no buffer: heads are parsed, hop-by-hop fields
// dropped and the head written anew, as a gateway must; bodies pass as views into the read buffer.
// `beast_relay <port> <upstream port>`; one thread.
#include <boost/asio.hpp>
#include <boost/beast/http/basic_parser.hpp>
#include <boost/beast/http/verb.hpp>

#include <array>

#include "common.h"

namespace asio = boost::asio;
namespace http = boost::beast::http;
using Executor = asio::io_context::executor_type;
template <class T = void>
using Task = asio::awaitable<T, Executor>;
using Socket = asio::basic_stream_socket<asio::ip::tcp, Executor>;
using Acceptor = asio::basic_socket_acceptor<asio::ip::tcp, Executor>;
constexpr asio::use_awaitable_t<Executor> use_task{};

namespace {

template <bool isRequest>
class Parser final : public http::basic_parser<isRequest> {
 public:
  std::string head;  // the head to send on, without its last CRLF
  std::string_view body;

 private:
  using error_code = boost::system::error_code;
  using view = boost::beast::string_view;
  void on_request_impl(http::verb, view method, view target, int, error_code&) override {
    head.append(method).append(" ").append(target).append(" HTTP/1.1\r\n");
  }
  void on_response_impl(int code, view reason, int, error_code&) override {
    head.append("HTTP/1.1 ").append(std::to_string(code)).append(" ").append(reason).append("\r\n");
  }
  void on_field_impl(http::field name, view text, view value, error_code&) override {
    switch (name) {
      case http::field::connection:
      case http::field::keep_alive:
      case http::field::te:
      case http::field::transfer_encoding:
      case http::field::upgrade:
        return;
      default:
        head.append(text).append(": ").append(value).append("\r\n");
    }
  }
  void on_header_impl(error_code&) override {}
  void on_body_init_impl(boost::optional<uint64_t> const&, error_code&) override {}
  size_t on_body_impl(view data, error_code&) override {
    body = {data.data(), data.size()};
    return data.size();
  }
  void on_chunk_header_impl(uint64_t, view, error_code&) override {}
  size_t on_chunk_body_impl(uint64_t, view data, error_code&) override {
    body = {data.data(), data.size()};
    return data.size();
  }
  void on_finish_impl(error_code&) override {}
};

struct Side {
  explicit Side(Socket socket) : socket(std::move(socket)) {}
  Socket socket;
  std::array<char, 16384> buffer;
  size_t begin = 0, end = 0;
};

// One message from one side to the other.
template <bool isRequest>
Task<> relay_message(Side& from, Side& to) {
  Parser<isRequest> parser;
  parser.eager(true);
  bool sent_head = false;
  while (!parser.is_done()) {
    parser.body = {};
    size_t used = 0;
    if (from.begin < from.end) {
      boost::system::error_code ec;
      used = parser.put(asio::buffer(from.buffer.data() + from.begin, from.end - from.begin), ec);
      from.begin += used;
      if (from.begin == from.end) from.begin = from.end = 0;
      if (ec && ec != http::error::need_more) throw boost::system::system_error(ec);
    }
    if (parser.is_header_done() && (!sent_head || !parser.body.empty())) {
      const std::array<asio::const_buffer, 3> gather = {sent_head ? asio::const_buffer() : asio::buffer(parser.head),
                                                        sent_head ? asio::const_buffer() : asio::buffer("\r\n", 2),
                                                        asio::buffer(parser.body)};
      sent_head = true;
      co_await asio::async_write(to.socket, gather, use_task);
    } else if (used == 0 && !parser.is_done()) {
      from.end += co_await from.socket.async_read_some(
          asio::buffer(from.buffer.data() + from.end, from.buffer.size() - from.end), use_task);
    }
  }
}

Task<> connection(Socket socket, uint16_t upstream) {
  auto client = std::make_unique<Side>(std::move(socket));
  client->socket.set_option(asio::ip::tcp::no_delay(true));
  auto server = std::make_unique<Side>(Socket(client->socket.get_executor()));
  const asio::ip::tcp::endpoint endpoint(asio::ip::address_v4::loopback(), upstream);
  try {
    co_await server->socket.async_connect(endpoint, use_task);
    server->socket.set_option(asio::ip::tcp::no_delay(true));
    for (;;) {
      co_await relay_message<true>(*client, *server);
      co_await relay_message<false>(*server, *client);
    }
  } catch (const boost::system::system_error&) {
    // The client left: the benchmark ends its connections like this.
  }
}

Task<> accept_loop(Acceptor& acceptor, uint16_t upstream) {
  for (;;) {
    auto socket = co_await acceptor.async_accept(use_task);
    asio::co_spawn(acceptor.get_executor(), connection(std::move(socket), upstream), asio::detached);
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: beast_relay <port> <upstream port>\n");
    return 2;
  }
  asio::io_context context(1);
  Acceptor acceptor(context.get_executor(), asio::ip::tcp::v4(),
                    relay::listen_on(static_cast<uint16_t>(std::atoi(argv[1]))));
  asio::co_spawn(context.get_executor(), accept_loop(acceptor, static_cast<uint16_t>(std::atoi(argv[2]))),
                 asio::detached);
  context.run();
}
