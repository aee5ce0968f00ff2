// shapes: trait objects in known numbers.
use std::io::Read;

trait Shape {
    fn area(&self) -> f64;
}
struct Circle {
    radius: f64,
    name: String, // has something to drop
}
struct Square {
    side: f64,
}
impl Shape for Circle {
    fn area(&self) -> f64 {
        self.radius * self.name.len() as f64
    }
}
impl Shape for Square {
    fn area(&self) -> f64 {
        self.side * self.side
    }
}

fn main() {
    let mut shapes: Vec<Box<dyn Shape>> = Vec::with_capacity(50_000);
    for i in 0..30_000 {
        let name = format!("circle {i}");
        shapes.push(Box::new(Circle { radius: i as f64, name }));
    }
    for i in 0..20_000 {
        shapes.push(Box::new(Square { side: i as f64 }));
    }
    let sum: f64 = shapes.iter().map(|shape| shape.area()).sum();
    println!("ready {sum}");
    let _ = std::io::stdin().read(&mut [0]);
}
