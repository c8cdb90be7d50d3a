"""A ROS 2 node that shows a camera's images to `videollm serve` and publishes what it says.

    pip install websockets numpy pillow
    python narrator.py --ros-args -r image:=/camera/image_raw -p server:=ws://192.168.0.5:7860 -p token:=...

Copy `ui/client.py` beside this file where videollm is not installed. Narrations are published on
`narration` (std_msgs/String); a String on `question` is answered on `answer`.
"""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import rclpy
from conversion import seconds, to_jpeg
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image
from std_msgs.msg import String

try:
    from ui.client import Stream, connect
except ImportError:
    from client import Stream, connect


class Narrator(Node):
    def __init__(self) -> None:
        super().__init__("narrator")
        self.server = self.declare_parameter("server", "ws://127.0.0.1:7860").value
        self.token = self.declare_parameter("token", "").value
        self.fps = self.declare_parameter("fps", 2.0).value
        self.narration = self.create_publisher(String, "narration", 10)
        self.answer = self.create_publisher(String, "answer", 10)
        self.create_subscription(Image, "image", self.see, qos_profile_sensor_data)
        self.create_subscription(String, "question", self.ask, 10)
        self.loop = asyncio.new_event_loop()
        self.stream: Stream | None = None
        self.next_time = 0.0

    def see(self, message: Any) -> None:
        """Called for every image: those between two ticks of `fps` are not even encoded."""
        time = seconds(message.header.stamp)
        if self.stream is not None and time >= self.next_time:
            self.next_time = time + 1 / self.fps
            asyncio.run_coroutine_threadsafe(self.stream.offer(to_jpeg(message), time), self.loop)

    def ask(self, message: Any) -> None:
        if self.stream is not None:
            asyncio.run_coroutine_threadsafe(self.publish_answer(message.data), self.loop)

    async def publish_answer(self, question: str) -> None:
        assert self.stream is not None
        self.answer.publish(String(data=await self.stream.ask(question)))

    async def narrate(self) -> None:
        """Until the server refuses or is gone for good."""
        # What is sent here is looked at: 60 is the protocol's highest rate.
        async with connect(self.server, token=self.token or None, fps=60.0) as self.stream:
            async for event in self.stream:
                if event["type"] == "narration":
                    self.narration.publish(String(data=event["text"]))
                elif event["type"] in ("notice", "error"):
                    self.get_logger().info(event.get("text") or event["message"])


def main() -> None:
    rclpy.init()
    node = Narrator()
    threading.Thread(target=rclpy.spin, args=(node,), daemon=True).start()
    try:
        node.loop.run_until_complete(node.narrate())
    except KeyboardInterrupt:
        pass
    finally:
        rclpy.shutdown()


if __name__ == "__main__":
    main()
