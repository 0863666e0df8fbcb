"""`sluice server` with the real model through the openai package, as users call it: chats, completions, structured output,
log-probabilities, embeddings, responses, errors.

usage: openai_client_test.py <sluice binary>; the model comes from SLUICE_TEST_MODEL."""
import json
import os
import sys
import unittest

sys.path.insert(0, os.path.dirname(__file__))
from sluice_process import Sluice, call, wait_until  # noqa: E402

BINARY = sys.argv[1] if len(sys.argv) > 1 else None
MODEL = os.environ.get("SLUICE_TEST_MODEL")
QUESTION = [{"role": "user", "content": "What is the capital of Japan?"}]
ANSWER = "The capital of Japan is Tokyo."
PERSON = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer"}},
          "required": ["name", "age"], "additionalProperties": False}


class OpenAiClientTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        import openai
        cls.openai = openai
        cls.server = Sluice(BINARY, "server", "--model-path", MODEL, "--served-model-name", "m", "--port", 0,
                            "--context-length", 2048, "--max-total-tokens", 8192, "--is-embedding", "--api-key", "secret")
        cls.client = openai.OpenAI(base_url=cls.server.url + "/v1", api_key="secret", max_retries=0)

    @classmethod
    def tearDownClass(cls):
        cls.server.kill()

    def chat(self, **more):
        return self.client.chat.completions.create(model="m", messages=QUESTION,
                                                   **{"temperature": 0, "max_tokens": 24, **more})

    def test_a_chat_and_its_usage(self):
        first = self.chat()
        self.assertEqual(first.choices[0].message.content, ANSWER)
        self.assertEqual(first.choices[0].finish_reason, "stop")
        second = self.chat()
        self.assertGreater(second.usage.prompt_tokens_details.cached_tokens, 0)
        self.assertEqual(second.usage.total_tokens, second.usage.prompt_tokens + second.usage.completion_tokens)

    def test_a_streamed_chat(self):
        chunks = list(self.chat(stream=True, stream_options={"include_usage": True}))
        self.assertEqual(chunks[0].choices[0].delta.role, "assistant")
        self.assertEqual("".join(c.choices[0].delta.content or "" for c in chunks if c.choices), ANSWER)
        self.assertEqual(chunks[-1].choices, [])
        self.assertGreater(chunks[-1].usage.completion_tokens, 0)

    def test_several_samples_count_their_prompt_once(self):
        one = self.chat()
        three = self.chat(n=3)
        self.assertEqual([c.message.content for c in three.choices], [ANSWER] * 3)
        self.assertEqual(three.usage.prompt_tokens, one.usage.prompt_tokens)

    def test_log_probabilities(self):
        answer = self.chat(logprobs=True, top_logprobs=3)
        content = answer.choices[0].logprobs.content
        self.assertEqual(bytes(b for token in content for b in token.bytes).decode().strip("\0"), ANSWER + "<|im_end|>"
                         if content[-1].token == "<|im_end|>" else ANSWER)
        for token in content:
            self.assertEqual(len(token.top_logprobs), 3)
            self.assertAlmostEqual(token.top_logprobs[0].logprob, token.logprob, places=5)

    def test_a_completion_with_echo(self):
        answer = self.client.completions.create(model="m", prompt=["One, two, three,", "A, B, C,"], temperature=0,
                                                max_tokens=4, echo=True, logprobs=2)
        self.assertEqual(len(answer.choices), 2)
        self.assertTrue(answer.choices[0].text.startswith("One, two, three,"))
        self.assertIsNone(answer.choices[0].logprobs.token_logprobs[0])
        self.assertEqual(len(answer.choices[1].logprobs.tokens), len(answer.choices[1].logprobs.text_offset))

    def structured(self, response_format, **more):
        answer = self.client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "Describe a person called Ann, 31 years old, as JSON."}],
            response_format=response_format, **{"max_tokens": 200, "temperature": 0, **more})
        if answer.choices[0].finish_reason != "stop":
            self.fail(f"ended with {answer.choices[0].finish_reason}: {answer.choices[0].message.content}")
        return json.loads(answer.choices[0].message.content)

    def test_a_json_schema(self):
        value = self.structured({"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}})
        self.assertEqual(set(value), {"name", "age"})
        self.assertIsInstance(value["age"], int)

    def test_any_json_object(self):
        # Small as it is, the model would go on for ever: what closes strings and objects is made likelier.
        closing = [call(self.server.url + "/tokenize", {"prompt": text, "add_special_tokens": False},
                        headers={"Authorization": "Bearer secret"})[2]["tokens"] for text in ('"', '}', '"}')]
        bias = {str(tokens[0]): 10 for tokens in closing if len(tokens) == 1}
        self.assertIsInstance(self.structured({"type": "json_object"}, logit_bias=bias), dict)

    def test_a_wrong_schema_is_a_bad_request_that_names_the_field(self):
        with self.assertRaises(self.openai.BadRequestError) as raised:
            self.structured({"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "nothing"}}})
        self.assertIn("response_format.json_schema.schema", str(raised.exception))

    def test_a_forced_call(self):
        tools = [{"type": "function", "function": {"name": "get_weather", "parameters": {
            "type": "object", "properties": {"city": {"type": "string", "maxLength": 20}}, "required": ["city"],
            "additionalProperties": False}}}]
        for choice in ("required", {"type": "function", "function": {"name": "get_weather"}}):
            answer = self.chat(tools=tools, tool_choice=choice, parallel_tool_calls=False, max_tokens=120)
            self.assertEqual(answer.choices[0].finish_reason, "tool_calls")
            forced, = answer.choices[0].message.tool_calls
            self.assertEqual(forced.function.name, "get_weather")
            self.assertEqual(set(json.loads(forced.function.arguments)), {"city"})

    def test_embeddings(self):
        # The client asks for base64 by itself.
        answer = self.client.embeddings.create(model="m", input=["The cat sat.", "A cat was sitting.", "Tax law of 1954"])
        a, b, c = (entry.embedding for entry in answer.data)
        self.assertEqual(len(a), 576)
        self.assertAlmostEqual(sum(x * x for x in a), 1, places=3)
        dot = lambda x, y: sum(p * q for p, q in zip(x, y))  # noqa: E731
        self.assertGreater(dot(a, b), dot(a, c))
        self.assertEqual(len(self.client.embeddings.create(model="m", input="x", dimensions=64).data[0].embedding), 64)

    def test_responses(self):
        answer = self.client.responses.create(model="m", input=QUESTION[0]["content"], temperature=0, max_output_tokens=24)
        self.assertEqual(answer.output_text, ANSWER)
        self.assertEqual(answer.status, "completed")
        text, last = "", None
        for event in self.client.responses.create(model="m", input=QUESTION[0]["content"], temperature=0, stream=True):
            if event.type == "response.output_text.delta":
                text += event.delta
            last = event
        self.assertEqual((text, last.type, last.response.output_text), (ANSWER, "response.completed", ANSWER))

    def test_a_stored_response_is_fetched_and_gone_on_from(self):
        first = self.client.responses.create(model="m", input=QUESTION[0]["content"], temperature=0, max_output_tokens=24)
        self.assertEqual(self.client.responses.retrieve(first.id).to_dict(), first.to_dict())
        second = self.client.responses.create(model="m", input="And of France?", temperature=0, max_output_tokens=24,
                                              previous_response_id=first.id)
        self.assertEqual(second.previous_response_id, first.id)
        said = self.client.chat.completions.create(
            model="m", temperature=0, max_tokens=24,
            messages=[*QUESTION, {"role": "assistant", "content": first.output_text},
                      {"role": "user", "content": "And of France?"}])
        self.assertEqual(second.output_text, said.choices[0].message.content)
        self.assertGreater(second.usage.input_tokens_details.cached_tokens, first.usage.input_tokens // 2)
        self.client.responses.delete(first.id)
        with self.assertRaises(self.openai.NotFoundError):
            self.client.responses.retrieve(first.id)

    def wait_for(self, response):
        return wait_until("the end", lambda: (now := self.client.responses.retrieve(response.id)).status not in (
            "queued", "in_progress") and now)

    def test_a_response_in_the_background(self):
        begun = self.client.responses.create(model="m", input=QUESTION[0]["content"], temperature=0, max_output_tokens=24,
                                             background=True)
        self.assertEqual((begun.status, begun.background, begun.output), ("queued", True, []))
        done = self.wait_for(begun)
        self.assertEqual((done.status, done.output_text), ("completed", ANSWER))
        long = self.client.responses.create(model="m", input="Count.", background=True, max_output_tokens=1500,
                                            extra_body={"ignore_eos": True})
        self.assertEqual(self.client.responses.cancel(long.id).status, "cancelled")
        self.assertEqual(self.wait_for(long).status, "cancelled")
        wait_until("its rank is free", lambda: call(self.server.url + "/get_load", headers={
            "Authorization": "Bearer secret"})[2][0]["num_reqs"] == 0)
        with self.assertRaises(self.openai.BadRequestError):
            self.client.responses.cancel(self.client.responses.create(model="m", input="Hi.", max_output_tokens=1).id)

    def test_errors_are_those_of_the_client(self):
        with self.assertRaises(self.openai.BadRequestError):
            self.chat(temperature=-1)
        with self.assertRaises(self.openai.NotFoundError):
            self.client.models.retrieve("nothing")
        with self.assertRaises(self.openai.AuthenticationError):
            self.openai.OpenAI(base_url=self.server.url + "/v1", api_key="wrong", max_retries=0).models.list()
        self.assertEqual([m.id for m in self.client.models.list()], ["m"])


if __name__ == "__main__":
    if not MODEL or not os.path.exists(MODEL):
        print("SLUICE_TEST_MODEL names no model")
        sys.exit(1 if os.environ.get("CI") else 77)
    unittest.main(argv=sys.argv[:1], verbosity=2)
